"""Reads a trial's log folder: the files of each start, and the lines that say why a rank failed.

<trial>/log/<job>.<restart>_<rank>_log.out      a start of a Slurm job; each requeue adds 1 to the restart
<trial>/log/local<n>_<rank>_log.out             a start on this machine
<trial>/log/<either>_<rank>_error.json          what ended a rank, if it could still write it (see rank_errors)
<trial>/log/local<n>_exit.json                  how the ranks of a local start ended, noted by their controller
<trial>/log/<job>.<restart>_stopped.json        written by a start that was warned, and has saved
<trial>/log/<job>.<restart>_srun.out            the errors of srun, if trials share the job
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict

from launcher import whole_file
from launcher.sweep import rank_errors

_LOG = re.compile(r"(?P<name>local(?P<local>\d+)|(?P<job>\d+)(?:\.(?P<restart>\d+))?)_(?P<rank>\d+)_log\.out")
MARK = "== start {start} =="
"""The line that the batch script prints when a start begins."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r(?!\n)")
_TAIL = 65536  # bytes of a log that are searched for the error
_LONGEST = 300  # characters of an error in one line
_MOST_LINES = 40  # of a traceback
_LAST_LINES = 12  # of a log without one
_RANKS = 64  # at most this many ranks' logs are searched for the first error
# The controller sees a killed rank only at its next check; other ranks see the broken connection at once.
_NOTICED_LATE_S = 0.5
_ERROR = re.compile(r"\s*(?:\[?rank ?\d+\]?:\s*)?((?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Refused)\b.*)")
_FATAL = re.compile(r"(Fatal Python error: .*|Segmentation fault.*|.*\bCUDA out of memory\b.*|.*\bKilled\b.*)")
_MEMORY = re.compile(r"out.of.memory|oom[- _]kill|exceeded (?:job|step|its) ?memory|memory limit", re.IGNORECASE)
_TYPE = re.compile(r"(?:\w+\.)*([A-Z]\w*(?:Error|Exception|Refused))\b")
#: What Apptainer, pyxis (with enroot's line) and our own script inside print where no rank can start.
_CONTAINER = re.compile(
    r"(?:slurmstepd\S*: (?:error: )?pyxis: +)?((?:FATAL: +|\[ERROR\] ).+|.*in_container\.sh: line \d+: .+)"
)
#: What a rank prints after another rank has died: not the cause.
_FOLLOWED = re.compile(
    r"Connection (?:reset|closed|refused)|Broken pipe|gloo|NCCL|ProcessGroup|DistNetwork|DistBackend|TCPStore"
    r"|SIGTERM|Interrupt|rendezvous|heartbeat",
    re.IGNORECASE,
)
# slurmstepd and srun also report the ranks that they ended themselves
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)(?:[,-][\d,-]*)?: (.+)")
_ENDED_BY_SRUN = re.compile(r"Terminated|Killed|Exited with exit code (?:143|137)")
_STEPD = re.compile(r"^(?:srun|slurmstepd\S*): (?:error: )?")
_NOISE = re.compile(r"(?:srun|slurmstepd(?:-\w+)?): ")


class RankExit(TypedDict):
    """How a rank of a local start ended, as its controller wrote it."""

    rank: int
    code: int | None
    time: float
    ended_by_launcher: bool


@dataclass(frozen=True)
class StartLogs:
    """What the ranks of one start of a trial printed."""

    name: str
    """`1234.0` (Slurm's own number of the element, and how often it had been requeued), `local2`."""
    job_id: int | None
    """None: it ran on this machine."""
    number: int
    """Restarts before it; for a local start, its number."""
    logs: dict[int, Path] = field(default_factory=dict)
    """By rank."""

    @property
    def folder(self) -> Path:
        return next(iter(self.logs.values())).parent

    @property
    def local(self) -> bool:
        return self.job_id is None

    @property
    def last_written(self) -> float:
        """When one of its logs was last written to, in seconds since 1970."""
        return max(log.stat().st_mtime for log in self.logs.values())

    def exits(self) -> list[RankExit] | None:
        """How its ranks ended, noted by a local controller. None: no note."""
        noted = whole_file.read_json(self.folder / f"{self.name}_exit.json")
        return noted if isinstance(noted, list) else None


def by_start(trial_folder: Path) -> list[StartLogs]:
    """The logs of a trial's starts, in order; [] where it has not started. Local starts come first."""
    starts: dict[str, StartLogs] = {}
    folder = trial_folder / "log"
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        match = _LOG.fullmatch(name)
        if match:
            job = int(match["job"]) if match["job"] else None
            number = int(match["local"] or match["restart"] or 0)
            start = starts.setdefault(match["name"], StartLogs(match["name"], job, number))
            start.logs[int(match["rank"])] = folder / name
    return sorted(starts.values(), key=lambda start: (start.job_id or 0, start.number))


def log_of(log_folder: Path, start: str, rank: int) -> Path:
    """Where a rank's output goes, stdout and stderr in one (submitit's name for it)."""
    return log_folder / f"{start}_{rank}_log.out"


def srun_log(trial_folder: Path, start: str) -> Path:
    """The file with srun's errors, if trials share the job; else they are in the batch script's output."""
    return trial_folder / "log" / f"{start}_srun.out"


@dataclass(frozen=True)
class Failure:
    """How a rank failed."""

    rank: int | None
    """None: no rank printed an error; this one is from the batch script's output."""
    error: str
    """In one line."""
    lines: tuple[str, ...]
    """The traceback, or the last lines of the log."""
    log: Path
    type: str = ""
    """The exception's name, `Refused` for a config that cannot run; "" if there was no exception."""
    code: int = 0
    """The rank's exit code, below 0: minus the signal that killed it. Known only for local ranks."""


def failure(start: StartLogs, batch: Sequence[str] = ()) -> Failure | None:
    """The failure of the rank that failed first. None if no rank left anything that looks like an error.

    Sources, in this order: the exit codes that a local controller recorded; the ranks' own notes, which have the time;
    the log of the rank that srun reports first in `batch`, the batch script's output; the last errors in the logs,
    where a lost connection counts only if there is no other error.
    """
    local = local_failures(start)
    if local:
        return local[0]
    noted = [(note.time, rank, note) for rank in sorted(start.logs) if (note := _note(start, rank))]
    if noted:
        _, rank, note = min(noted, key=lambda item: item[:2])
        return _noted(note, rank, start.logs[rank])
    reported = srun_reported(batch)
    if reported and reported.rank in start.logs:
        log = start.logs[reported.rank]
        printed = _printed(reported.rank, log)
        if not (printed and printed.type):  # an exception: the container had started
            printed = _of_container(reported.rank, log, batch) or printed
        return printed or Failure(reported.rank, reported.ending, tuple(tail(log)[-_LAST_LINES:]), log)
    candidates = []
    for rank in sorted(start.logs)[:_RANKS]:
        printed = _printed(rank, start.logs[rank])
        if printed:
            followed = bool(_FOLLOWED.search(printed.error))
            candidates.append((followed, start.logs[rank].stat().st_mtime, rank, printed))
    return min(candidates, key=lambda item: item[:3])[3] if candidates else None


def local_failures(start: StartLogs) -> list[Failure]:
    """The failures of the ranks of a local start, the first one first; without those that the launcher ended."""
    failures: list[tuple[float, int, Failure]] = []
    for exit_ in start.exits() or ():
        rank, code = exit_["rank"], exit_["code"] or 0
        log = start.logs.get(rank, log_of(start.folder, start.name, rank))
        note = _note(start, rank)
        if note:
            failures.append((note.time, rank, _noted(note, rank, log, code)))
        elif code and not exit_["ended_by_launcher"]:
            lines = tail(log)
            printed = _printed(rank, log) if code > 0 else None
            error = printed.error if printed else shorten(lines[-1]) if lines and code > 0 else ""
            failure = Failure(rank, error, printed.lines if printed else tuple(lines[-_LAST_LINES:]), log, code=code)
            failures.append((exit_["time"] - _NOTICED_LATE_S, rank, failure))
    return [failure for _, _, failure in sorted(failures, key=lambda item: item[:2])]


class SrunReport(NamedTuple):
    """A task that srun reports as failed."""

    rank: int
    ending: str
    """`Exited with exit code 3`, `Segmentation fault`"""
    node: str


def srun_reported(batch: Sequence[str]) -> SrunReport | None:
    """The task that srun reports as the first to fail: `srun: error: node2: task 1: Exited with exit code 3`.

    After a failure srun ends the other tasks: those count only if there is no other report.
    """
    matches = [match for line in batch if (match := _SRUN.fullmatch(line.strip()))]
    reports = [SrunReport(int(match[2]), match[3].strip(), match[1]) for match in matches]
    first = reports[0] if reports else None
    return next((report for report in reports if not _ENDED_BY_SRUN.match(report.ending)), first)


def of_start(batch: Sequence[str], start: str) -> list[str]:
    """What the batch script printed in one start, named as in its MARK; all of it where there is no such mark."""
    mark = MARK.format(start=start)
    place = max((place for place, line in enumerate(batch) if line.startswith(mark)), default=-1)
    return list(batch[place + 1 :])


def tail(path: Path, size: int = _TAIL) -> list[str]:
    """The last lines of a file (its last `size` bytes), without colours and blank lines; [] if it cannot be read."""
    try:
        with whole_file.regular(path) as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            text = stream.read(size).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in _ANSI.sub("", text).splitlines() if line.strip()]


def out_of_memory_line(lines: Iterable[str]) -> str:
    """The line in which Slurm or CUDA reports that memory ran out; "" if there is none."""
    line = next((line.strip() for line in lines if _MEMORY.search(line)), "")
    return shorten(_STEPD.sub("", line))


def shorten(text: str) -> str:
    """The text in one line that is not too long."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _note(start: StartLogs, rank: int) -> rank_errors.RankError | None:
    return rank_errors.read(start.folder, start.name, rank)


def _noted(note: rank_errors.RankError, rank: int, log: Path, code: int = 0) -> Failure:
    """A rank's failure by its own note."""
    lines = note.traceback or (note.text,)
    return Failure(rank, shorten(note.text), lines, log, note.type or "Refused", code)


def _printed(rank: int, log: Path) -> Failure | None:
    """A rank's failure by the last line of its log that looks like an error."""
    lines = tail(log)
    for place in range(len(lines) - 1, -1, -1):
        line = lines[place]
        if _NOISE.match(line) and not _MEMORY.search(line):
            continue
        match = _ERROR.fullmatch(line) or _FATAL.fullmatch(line)
        if match or _MEMORY.search(line):
            text = match[1] if match else _STEPD.sub("", line.strip())
            kind = _TYPE.match(text)
            return Failure(rank, shorten(text), tuple(_around(lines, place)), log, kind[1] if kind else "")
    return None


def _of_container(rank: int, log: Path, batch: Sequence[str]) -> Failure | None:
    """Why the container runtime could not start a rank; None if it did.

    What the image itself lacks, it lacks on every node: another start would end the same way (`Refused`). An image that
    is missing may be there on another node.
    """
    lines = tail(log)
    for line in [*lines[-_LAST_LINES:], *batch]:
        if match := _CONTAINER.fullmatch(line.strip()):
            inside = match[1].rpartition("in_container.sh: ")
            error, lacks = shorten(inside[2]), bool(inside[1]) and inside[2].endswith("not found")
            return Failure(rank, f"the container: {error}", tuple(lines[-_LAST_LINES:]), log, "Refused" * lacks)
    return None


def _around(lines: list[str], place: int) -> list[str]:
    """The traceback that ends in line `place`; if the interpreter itself crashed, the lines after it."""
    if "Fatal Python error" in lines[place]:
        return lines[place : place + _MOST_LINES]
    first = max(0, place - _MOST_LINES + 1)
    for start in range(place, first - 1, -1):
        if "Traceback (most recent call last)" in lines[start]:
            return lines[start : place + 1]
    return lines[max(0, place - 4) : place + 1]
