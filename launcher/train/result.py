"""result.json of a finished trial. It is made from metrics.jsonl, so that it covers all starts of a resumed trial."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.sweep.metrics import STARTING, Line

PACKAGES = (
    "torch",
    "nemo_toolkit",
    "nemo-aligner",
    "megatron-core",
    "lightning",
    "transformers",
    "numpy",
    "omegaconf",
    "apex",
    "transformer-engine",
    "flash-attn",
)


def summarise(lines: Sequence[Line]) -> dict[str, object]:
    """The part of a result that comes from metrics.jsonl. If a resumed trial repeated a step, the last one counts.

    Keys: `steps`; `consumed_samples` (pairs); `seconds` (wall time of all starts, without the gaps between them, but
    including steps that were lost when a start was killed);
    `train_seconds` (the part of it in phase "training") and `phase_seconds`; metrics, each with its `step`:
    `baseline` (validation before the first step), `first` (first train step), `final` (last validation and last train
    step), `best` (validation with the lowest loss after the first step). A metric that was NaN is None.
    """
    train = {line["step"]: line for line in lines if "train/loss" in line}
    validations = {line["step"]: line for line in lines if "val/loss" in line}
    trained = [line for step, line in sorted(validations.items()) if step > 0]
    steps = max(train, default=0)
    seconds = _phase_seconds(lines)
    known = [line for line in trained if line["val/loss"] is not None]
    return {
        "steps": steps,
        "consumed_samples": int(train[steps]["train/consumed_samples"]) if train else 0,
        "seconds": round(sum(seconds.values()), 3),
        "train_seconds": round(seconds.get("training", 0.0), 3),
        "phase_seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "baseline": _metrics(validations.get(0)),
        "first": _metrics(train[min(train)]) if train else {},
        "final": {**_metrics(trained[-1] if trained else None), **_metrics(train.get(steps))},
        "best": _metrics(min(known, key=lambda line: line["val/loss"], default=None)),
    }


def read_result(path: Path) -> dict[str, object] | None:
    """The result, or None if there is no file, that is, if the trial is not done."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return result


def versions() -> dict[str, str]:
    """Versions of Python and of those PACKAGES that are installed: the results depend on them."""
    present = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            present[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return present


def _metrics(line: Line | None) -> dict[str, object]:
    if line is None:
        return {}
    return {key: value for key, value in line.items() if key == "step" or "/" in key}


def _phase_seconds(lines: Sequence[Line]) -> dict[str, float]:
    """Seconds in each phase, summed over all starts; a start ends with its last line."""
    seconds: dict[str, float] = {}
    phase, since = "", 0.0
    for line in lines:
        if phase and line.get("phase") != STARTING:
            seconds[phase] = seconds.get(phase, 0.0) + line["time"] - since
        phase, since = str(line.get("phase", phase)), line["time"]
    return seconds
