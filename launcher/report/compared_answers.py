"""The answers of all policies to the same prompt, side by side, from evaluation/answers.jsonl and reference.jsonl.

Damaged lines are left out: a report is made at any moment, also of folders that others wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.report import recorded, trial_files
from launcher.report.gather import Report
from launcher.report.pools import Pool
from launcher.sweep.trial import Trial

ANSWERS, REFERENCE = "evaluation/answers.jsonl", "evaluation/reference.jsonl"
_MOST_PROMPTS = 8  # of those that all policies have answered, half of them with checks
_MOST_COMPARED = 8  # pools


class ComparedAnswer(NamedTuple):
    """One greedy answer."""

    pool: Pool | None
    """None: the reference policy's, or the data's own."""
    name: str
    text: str
    ended: bool
    checks: Sequence[tuple[str, bool]]
    """(id of an instruction such as `keywords:existence`, whether the answer follows it)."""


class ComparedPrompt(NamedTuple):
    """A prompt and all answers to it."""

    text: str
    answers: list[ComparedAnswer]


def compared(report: Report) -> list[ComparedPrompt]:
    """Some prompts that all policies have answered, those with checks first; [] if nothing was evaluated.

    Of several seeds of a beta, the first's answers are taken.
    """
    policies = [(pool, trials[0]) for pool in report.pools if (trials := [it for it in pool.trials if it.scores])]
    rows = [(pool, _rows(it.trial, ANSWERS), it.scores) for pool, it in policies[:_MOST_COMPARED]]
    if not rows:
        return []
    shared = [key for key in rows[0][1] if all(key in own for _, own, _ in rows)]
    checked = [key for key in shared if rows[0][1][key].get("instructions")]
    plain = [key for key in shared if key not in checked]
    half = max(_MOST_PROMPTS // 2, _MOST_PROMPTS - len(plain))
    reference = _rows(policies[0][1].trial, REFERENCE)
    found = []
    for key in (*checked[:half], *plain[: _MOST_PROMPTS - min(half, len(checked))]):
        first = rows[0][1][key]
        answers = []
        if first.get("chosen"):
            answers.append(ComparedAnswer(None, "chosen in the data", str(first["chosen"]), True, ()))
        if key in reference:
            answers.append(_answer(None, "reference", reference[key], ()))
        for pool, own, scores in rows:
            checks = scores.checks.get(key, ()) if scores else ()
            answers.append(_answer(pool, pool.name, own[key], checks))
        found.append(ComparedPrompt(str(first.get("prompt", "")), answers))
    return found


def _answer(pool: Pool | None, name: str, row: Mapping[str, Any], checks: Sequence[tuple[str, bool]]) -> ComparedAnswer:
    return ComparedAnswer(pool, name, str(row.get("greedy", "")), bool(row.get("greedy_ended")), checks)


def _rows(trial: Trial, name: str) -> dict[str, Mapping[str, Any]]:
    return {str(row["prompt_id"]): row for row in _lines(trial, name) if "prompt_id" in row}


def _lines(trial: Trial, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        content = trial_files.read(trial, name)
    except trial_files.Unreadable:
        return  # such as a link: it is treated as missing
    for line in content.split(b"\n"):
        try:
            yield recorded.mapping(json.loads(line)) if line.strip() else {}
        except (ValueError, RecursionError):
            continue
