"""What a trial's ranks left in its log folder: the files of each start, and the lines that say why one failed.

<trial>/log/<job>.<restart>_<rank>_log.out      a start of a Slurm job; a requeue counts the restart up
<trial>/log/local<n>_<rank>_log.out             a start on this machine
<trial>/log/<either>_<rank>_error.json          what ended a rank, where it could still say so: time, type, message
<trial>/log/<job>.<restart>_stopped.json        written by a start that was warned, and has saved
<trial>/log/<job>.<restart>_srun.out            of a trial that shares its job with others: what its srun complained of
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

_LOG = re.compile(r"(?P<name>local(?P<local>\d+)|(?P<job>\d+)(?:\.(?P<restart>\d+))?)_(?P<rank>\d+)_log\.out")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")
_TAIL = 65536  # bytes of a log that are searched for the error
_LONGEST = 300  # characters of an error in one line
_MOST_LINES = 40  # of a traceback
_LAST_LINES = 12  # of a log without one
_RANKS = 64  # at most so many ranks' logs are searched for the first error
_ERROR = re.compile(r"\s*(?:\[?rank ?\d+\]?:\s*)?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Refused)\b.*)")
_FATAL = re.compile(r"(Fatal Python error: .*|Segmentation fault.*|.*\bCUDA out of memory\b.*|.*\bKilled\b.*)")
_MEMORY = re.compile(r"out.of.memory|oom[- _]kill|exceeded (?:job|step|its) ?memory|memory limit", re.IGNORECASE)
_TYPE = re.compile(r"(?:\w+\.)*([A-Z]\w*(?:Error|Exception|Refused))\b")
#: What a rank says when another one has gone: not the cause.
_FOLLOWED = re.compile(
    r"Connection (?:reset|closed|refused)|Broken pipe|gloo|NCCL|ProcessGroup|DistNetwork|DistBackend|TCPStore"
    r"|SIGTERM|Interrupt|rendezvous|heartbeat",
    re.IGNORECASE,
)
# slurmstepd and srun report the end that they brought about themselves
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)(?:[,-][\d,-]*)?: (.+)")
_ENDED_BY_SRUN = re.compile(r"Terminated|Killed|Exited with exit code (?:143|137)")
_STEPD = re.compile(r"^(?:srun|slurmstepd\S*): (?:error: )?")
_NOISE = re.compile(r"(?:srun|slurmstepd(?:-\w+)?): ")


@dataclass(frozen=True)
class StartLogs:
    """What the ranks of one start of a trial printed."""

    name: str
    """`1234.0` (Slurm's own number of the element, and how often it had been requeued), `local2`."""
    job_id: int | None
    """None: it ran on this machine."""
    number: int
    """Restarts before it; of a local one its number."""
    logs: dict[int, Path] = field(default_factory=dict)
    """By rank."""

    @property
    def folder(self) -> Path:
        return next(iter(self.logs.values())).parent


def by_start(trial_folder: Path) -> list[StartLogs]:
    """A trial's starts, in order; [] where it has not started. Local ones, of which a Slurm sweep has none, first."""
    found: dict[str, StartLogs] = {}
    try:
        names = os.listdir(trial_folder / "log")
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        match = _LOG.fullmatch(name)
        if match:
            job = int(match["job"]) if match["job"] else None
            number = int(match["local"] or match["restart"] or 0)
            start = found.setdefault(match["name"], StartLogs(match["name"], job, number))
            start.logs[int(match["rank"])] = trial_folder / "log" / name
    return sorted(found.values(), key=lambda start: (start.job_id or 0, start.number))


def srun_log(trial_folder: Path, start: str) -> Path:
    """Where srun's complaints are, if the trial shared its job; else they are in what the batch script printed."""
    return trial_folder / "log" / f"{start}_srun.out"


@dataclass(frozen=True)
class Failure:
    """The first failure of a start."""

    rank: int | None
    """None: no rank said anything, this is from what the batch script printed."""
    error: str
    """In one line."""
    lines: tuple[str, ...]
    """The traceback, or the last lines of the log."""
    log: Path
    type: str = ""
    """The exception's name, `Refused` of a config that cannot be run; "" where it was none."""


def failure(start: StartLogs, batch: Sequence[str] = ()) -> Failure | None:
    """What the rank that failed first said. None where no rank of the start said anything that looks like an error.

    By the ranks' own notes, which have the time; else by the log of the rank that srun reports first in `batch`, what
    the batch script printed; else by what the logs end with, where a complaint about a lost connection only counts if
    there is no other.
    """
    noted = [found for rank in sorted(start.logs) if (found := _noted(start, rank))]
    if noted:
        return min(noted, key=lambda pair: pair[0])[1]
    reported = srun_reported(batch)
    if reported and reported[0] in start.logs:
        rank, how, _ = reported
        log = start.logs[rank]
        return _told(rank, log) or Failure(rank, how, tuple(tail(log)[-_LAST_LINES:]), log)
    told = []
    for rank in sorted(start.logs)[:_RANKS]:
        said = _told(rank, start.logs[rank])
        if said:
            told.append((bool(_FOLLOWED.search(said.error)), start.logs[rank].stat().st_mtime, rank, said))
    return min(told, key=lambda item: item[:3])[3] if told else None


class Reported(NamedTuple):
    """A task that srun says has failed."""

    rank: int
    how: str
    """`Exited with exit code 3`, `Segmentation fault`"""
    node: str


def srun_reported(batch: Sequence[str]) -> Reported | None:
    """The task that srun reports as the first to fail: `srun: error: node2: task 1: Exited with exit code 3`.

    One that it ended itself, as it does once one has failed, only if there is no other.
    """
    matches = [match for line in batch if (match := _SRUN.fullmatch(line.strip()))]
    found = [Reported(int(match[2]), match[3].strip(), match[1]) for match in matches]
    return next((each for each in found if not _ENDED_BY_SRUN.match(each.how)), found[0] if found else None)


def _noted(start: StartLogs, rank: int) -> tuple[float, Failure] | None:
    path = start.folder / f"{start.name}_{rank}_error.json"
    try:
        note: dict[str, Any] = json.loads(path.read_bytes())
        error = ": ".join(part for part in (note["type"], note["message"]) if part)
        lines = tuple(str(note.get("traceback", "")).rstrip().splitlines()[-_MOST_LINES:])
        kind = str(note["type"]) or "Refused"
        return float(note["time"]), Failure(rank, _short(error), lines or (error,), start.logs[rank], kind)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _told(rank: int, log: Path) -> Failure | None:
    lines = tail(log)
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place]
        if _NOISE.match(line) and not _MEMORY.search(line):
            continue
        match = _ERROR.fullmatch(line) or _FATAL.fullmatch(line)
        if match or _MEMORY.search(line):
            text = match[1] if match else _STEPD.sub("", line.strip())
            kind = _TYPE.match(text)
            return Failure(rank, _short(text), tuple(_around(lines, place)), log, kind[1] if kind else "")
    return None


def _around(lines: list[str], place: int) -> list[str]:
    """The traceback that ends in line `place`; what follows it where it is a crash of the interpreter's."""
    if "Fatal Python error" in lines[place]:
        return lines[place : place + _MOST_LINES]
    first = max(0, place - _MOST_LINES + 1)
    for start in range(place, first - 1, -1):
        if "Traceback (most recent call last)" in lines[start]:
            return lines[start : place + 1]
    return lines[max(0, place - 4) : place + 1]


def tail(path: Path, size: int = _TAIL) -> list[str]:
    """The last lines of a file without colours and blank lines; [] where there is no file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            text = stream.read().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [line.rstrip() for line in _ANSI.sub("", text).splitlines() if line.strip()]


def said_out_of_memory(lines: Iterable[str]) -> str:
    """The line in which Slurm or CUDA says that memory ran out; "" where none does."""
    said = next((line.strip() for line in lines if _MEMORY.search(line)), "")
    return _short(_STEPD.sub("", said))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
