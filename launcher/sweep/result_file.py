"""The files that record how far a trial has come: trained.json once training is complete, result.json at the very end.

The evaluation lies between the two. If it fails, in one rank or in all, the trial is done with what trained.json holds:
an evaluation can be repeated without training (`python -m launcher report --evaluate`). Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from launcher import whole_file

TRAINED, RESULT = "trained.json", "result.json"


def write_trained(trial: Path, outcome: Mapping[str, object]) -> None:
    """Record that training is complete. `outcome` is the result without the evaluation."""
    whole_file.write_json(trial / TRAINED, outcome)


def write_result(trial: Path, outcome: Mapping[str, object], evaluation: Mapping[str, object]) -> None:
    """Write result.json, which makes the trial done."""
    finished = datetime.now().astimezone().isoformat(timespec="seconds")
    whole_file.write_json(trial / RESULT, {**outcome, "evaluation": evaluation, "finished": finished})
    (trial / TRAINED).unlink(missing_ok=True)


def seconds(result: Mapping[str, object]) -> float | None:
    """How long a trial took, as its result says; None if it does not."""
    value = result.get("seconds")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def finish_without_evaluation(trial: Path, why: str) -> bool:
    """Make a trial done whose training is complete and whose evaluation failed. Returns whether the trial is done.

    `why`: how the evaluation failed. The first rank that fails gives the reason: the others fail because of it.
    """
    if not (trial / RESULT).exists():
        outcome = whole_file.read_json(trial / TRAINED)
        if outcome is None:
            return False
        write_result(trial, outcome, {"failed": True, "skipped": f"it failed: {' '.join(why.split())}"[:400]})
    return True
