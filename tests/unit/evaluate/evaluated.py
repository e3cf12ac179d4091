"""`python -m launcher evaluate` called from a test, and what it leaves in a trial's folder."""

from __future__ import annotations

from typing import Any

from launcher import __main__ as command
from launcher import whole_file
from launcher.evaluate import answers
from launcher.sweep.folder import Sweep

ASKED = {"held_out": 3, "instructions": 2, "samples": 2, "max_tokens": 6, "temperature": 1.0, "seed": 1}


def evaluate(*words: Any) -> int:
    return command.main(["evaluate", *map(str, words)])


def answered(sweep: Sweep, number: int = 0) -> dict[str, answers.PromptAnswers]:
    file = sweep.trials[number].folder / "evaluation" / "answers.jsonl"
    return {answer.prompt_id: answer for answer in answers.read(file)}


def scores(sweep: Sweep, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = whole_file.read_json(sweep.trials[number].folder / "evaluation" / "scores.json")
    return found
