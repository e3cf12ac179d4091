"""Why a trial's ranks ended, read from what they left in its log folder: the cause, not what followed from it."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.local.controller import BUSY

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERROR_LINE = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?::|$)")
_LONGEST = 300  # characters of an error that are shown
# A killed rank is noticed by the controller's next look; what it broke in other ranks they notice at once.
_NOTICED_LATE_S = 0.5


@dataclass(frozen=True)
class Ending:
    """How a start went wrong; `error` is "" where nothing did."""

    error: str
    log: Path


def read(folder: Path, job_id: str, ranks: int, controller_code: int) -> Ending:
    """The first failure among `ranks` of the start `job_id`, whose files lie in `folder`."""
    first = log_of(folder, job_id, 0)
    if controller_code == BUSY:
        return Ending("is being run by another launcher", first)
    exits = _load(folder / f"{job_id}_exit.json")
    if exits is None:
        return Ending(f"its controller {_died(controller_code)}: {_last_line(first)}", first)
    failures = []
    for note in exits:
        error = _load(folder / f"{job_id}_{note['rank']}_error.json")
        if error:
            failures.append((error["time"], note["rank"], _said(error)))
        elif note["code"] and not note["ended_by_launcher"]:
            text = _died(note["code"])
            if note["code"] > 0:
                text = f"{_last_line(log_of(folder, job_id, note['rank']))} ({text})"
            failures.append((note["time"] - _NOTICED_LATE_S, note["rank"], text))
    if not failures:
        return Ending("", first)
    _, rank, text = min(failures)
    return Ending(f"rank {rank}: {text}" if ranks > 1 else text, log_of(folder, job_id, rank))


def log_of(folder: Path, job_id: str, rank: int) -> Path:
    """What rank `rank` printed, stdout and stderr in one (submitit's name for it)."""
    return folder / f"{job_id}_{rank}_log.out"


def _said(error: dict[str, Any]) -> str:
    parts = [part for part in (error["type"], error["message"]) if part]
    return _short(": ".join(parts))


def _died(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = {"SIGKILL": " (by the kernel, if memory ran out)", "SIGSEGV": " (segmentation fault)"}.get(name, "")
    return f"was killed by {name}{hint}"


def _last_line(log: Path) -> str:
    """The last line that looks like an exception; without one, the last line that says anything."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 16384))
            text = _ANSI.sub("", stream.read().decode(errors="replace"))
    except FileNotFoundError:
        return "no log"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return _short((errors or lines or ["the log is empty"])[-1])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
