"""How far the evaluation of a trial is, from the files in its folder evaluation/. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher import whole_file

FOLDER = "evaluation"
#: What a folder of a kept checkpoint begins with, before its step.
STEP = "step-"
ANSWERS, SCORES, SETTINGS, ERROR, LOCK = "answers.jsonl", "scores.json", "settings.json", "error.json", "lock"
SUITES = "suites.json"
"""lm-eval's: {task: {metric: [value, standard error or null]}}, and what it was made with."""


@dataclass(frozen=True)
class EvaluationState:
    """What is there of a trial's evaluation."""

    answered: int
    """Prompts that the policy has answered."""
    prompts: int | None
    """Prompts it is asked; None before it has begun."""
    complete: bool
    error: str
    """Why the last try failed; "" where it did not."""

    @property
    def text(self) -> str:
        """`evaluated`, `evaluation failed: ...`, `answered 8 of 16 prompts`; "" where nothing is there.

        Behind a policy's answers come the reference's, once a sweep, and the judge: minutes on a CPU.
        """
        if self.complete:
            return "evaluated"
        if self.error:
            return f"evaluation failed: {self.error}"
        if self.prompts is None:
            return ""
        text = f"answered {self.answered} of {self.prompts} prompts"
        return text if self.answered < self.prompts else f"{text}, comparing with the reference"


def read(trial: Path) -> EvaluationState:
    """The state of the evaluation in a trial's folder."""
    folder = trial / FOLDER
    if not folder.is_dir():  # one question in place of four: a sweep may have thousands of trials
        return EvaluationState(0, None, False, "")
    settings, error = whole_file.read_json(folder / SETTINGS), whole_file.read_json(folder / ERROR)
    prompts = settings.get("prompts") if isinstance(settings, dict) else None
    return EvaluationState(
        answered=(whole_file.read(folder / ANSWERS) or b"").count(b"\n"),
        prompts=prompts if isinstance(prompts, int) else None,
        complete=(folder / SCORES).is_file(),
        error=str(error.get("error") or "unknown") if isinstance(error, dict) else "",
    )
