"""Reading a trial's metrics.jsonl, at any moment: while it is written, before it exists, after a crash in mid-line."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import whole_file

#: Bytes read from the end and the start of a file to find the progress: some 30 train steps, and the first one.
TAIL, HEAD = 16384, 4096
#: The first phase that rank 0 writes, in each start of a trial.
STARTING = "starting"

Line = dict[str, Any]


@dataclass(frozen=True)
class TrialProgress:
    """How far a trial is, as read from its metrics. None: not written yet."""

    phase: str = ""
    """"starting", "loading model", "reference", "training", "validating", "saving", "done"; "" before the first."""
    detail: str = ""
    step: int = 0
    """Optimizer steps done."""
    max_steps: int | None = None
    loss: float | None = None
    """Training loss of the last step; nan where it has diverged."""
    accuracy: float | None = None
    """Share of the last step's training pairs whose chosen response has the higher log-ratio."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_step: int | None = None
    """Steps done at the last validation."""
    silent: float | None = None
    """Seconds since it last wrote a line."""
    in_phase: float | None = None
    """Seconds since the phase began."""
    rate: float | None = None
    """Steps a second, validations included where they are known."""
    eta: float | None = None
    """Seconds to the last step at that rate."""


def read_all(path: Path) -> list[Line]:
    """Every whole line of the file, in order; [] if there is no file. Broken lines are left out."""
    return _parse(whole_file.read(path) or b"")


def read_progress(path: Path, now: float | None = None, tail_size: int = TAIL, head_size: int = HEAD) -> TrialProgress:
    """What the last lines of the file say. Reads at most tail_size + head_size bytes, however long the run was.

    The head is for the rate. `now` is the time in seconds since the epoch, time.time() if not given.
    """
    try:
        with whole_file.regular(path) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - tail_size))
            tail = stream.read()
            head = b""
            if size > tail_size:
                tail = tail.partition(b"\n")[2]  # begins in the middle of a line
                stream.seek(0)
                head = stream.read(head_size)
    except OSError:  # a disk may fail for a moment; the next call reads again
        return TrialProgress()
    lines = _parse(tail)
    starts = [place for place, line in enumerate(lines) if line.get("phase") == STARTING]
    if starts:
        lines, head = lines[starts[-1] :], b""  # earlier lines belong to another start
    return _progress(lines, _parse(head), time.time() if now is None else now)


def append_phase(path: Path, phase: str, detail: str = "") -> None:
    """Append a change of phase. Only rank 0 may call this."""
    line = json.dumps({"time": round(time.time(), 3), "phase": phase, "detail": detail})
    with path.open("ab") as stream:
        if stream.tell() and not _ends_in_newline(path):
            line = "\n" + line  # a predecessor was killed in the middle of its last line
        stream.write(line.encode() + b"\n")


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def parse_line(raw: bytes) -> Line | None:
    """Parse a line of the file, without its line break; None if it is empty, broken or still being written."""
    if not raw.endswith(b"}"):
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if _is_sound(line) else None


def _is_sound(line: Any) -> bool:
    """Whether it is an object that has a time and, if it has a loss, the step number."""
    if not isinstance(line, dict):
        return False
    moment, figures = line.get("time"), "train/loss" in line or "val/loss" in line
    if not isinstance(moment, (int, float)) or not math.isfinite(moment) or (figures and "step" not in line):
        return False
    return isinstance(line.get("step", 0), int) and isinstance(line.get("max_steps", 0), int)


def _parse(text: bytes) -> list[Line]:
    """Every line that `parse_line` takes, in half its time: `status` reads thousands of files."""
    whole = [raw for raw in text.split(b"\n") if raw.endswith(b"}")]
    try:
        return [line for line in json.loads(b"[%s]" % b",".join(whole)) if _is_sound(line)]
    except (ValueError, RecursionError):
        return [line for raw in whole if (line := parse_line(raw)) is not None]


def _progress(lines: list[Line], head: list[Line], now: float) -> TrialProgress:
    if not lines:
        return TrialProgress()
    steps = [line for line in lines if "train/loss" in line]
    validations = [line for line in lines if "val/loss" in line]
    phases = [line for line in lines if "phase" in line]
    phase = phases[-1] if phases else {"phase": "training", "time": lines[0]["time"]}
    began = _began(phases) if phases else lines[0]["time"]
    step = int(steps[-1]["step"]) if steps else int(_last(lines, "step") or 0)
    max_steps = _last(lines, "max_steps") or _last(head, "max_steps")
    first = [line for line in head if "train/loss" in line][:1] or steps[:1]
    rate = _rate(first, steps)
    eta = None
    if rate and max_steps:
        eta = max(0.0, (int(max_steps) - step) / rate - (now - steps[-1]["time"]))
    return TrialProgress(
        phase=str(phase["phase"]),
        detail=str(phase.get("detail") or ""),
        step=step,
        max_steps=int(max_steps) if max_steps else None,
        loss=_number(steps, "train/loss"),
        accuracy=_number(steps, "train/acc"),
        val_loss=_number(validations, "val/loss"),
        val_accuracy=_number(validations, "val/acc"),
        val_step=_last(validations, "step"),
        silent=max(0.0, now - lines[-1]["time"]),
        in_phase=max(0.0, now - began),
        rate=rate,
        eta=eta,
    )


def _began(phases: list[Line]) -> float:
    """When the last phase began. A phase is written repeatedly, to report its progress."""
    began = phases[-1]
    for line in reversed(phases):
        if line["phase"] != began["phase"]:
            break
        began = line
    return float(began["time"])


def _rate(first: list[Line], steps: list[Line]) -> float | None:
    """Steps a second since the run's first step; after a pause, only over the last steps in `steps`.

    The average over the run includes validations, so that the time left is right; but a requeued run may have waited
    for hours.
    """
    recent, whole = _pace(steps[:1], steps), _pace(first, steps)
    return recent if recent and whole and whole < recent / 2 else whole or recent


def _pace(first: list[Line], steps: list[Line]) -> float | None:
    if not first or not steps:
        return None
    done, seconds = steps[-1]["step"] - first[0]["step"], steps[-1]["time"] - first[0]["time"]
    return done / seconds if done > 0 and seconds > 0 else None


def _last(lines: list[Line], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if key in line), None)


def _number(lines: list[Line], key: str) -> float | None:
    for line in reversed(lines):
        if key in line:  # null means NaN or infinity: training has diverged
            return float(line[key]) if isinstance(line[key], (int, float)) else math.nan
    return None
