"""What a trial that was started on this machine is doing: by the lock its controller holds, and what its ranks left."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.sweep import logs
from launcher.sweep.folder import Trial

if TYPE_CHECKING:
    from launcher.status.states import TrialState


def state(trial: Trial, job: Mapping[str, Any]) -> TrialState:
    """A trial without a result, whose last start was by the local launcher of `job`."""
    from launcher.status.states import TrialState

    host, _, pid = str(job["id"]).rpartition(":")
    here = host == socket.gethostname()
    submitted = datetime.fromisoformat(job["submitted"]).timestamp()
    started = [start for start in logs.by_start(trial.folder) if start.job_id is None and _age(start) >= submitted]
    if locked(trial.folder / "log" / "lock"):
        return TrialState(trial=trial, state="RUNNING", job=str(job["id"]), nodes=host, node_count=1)
    launcher_lives = here and alive(int(pid), submitted)
    if not started:
        if launcher_lives:
            return TrialState(trial=trial, state="WAITING", reason="waits for the trials before it", job=str(job["id"]))
        if not here:
            why = f"has not started; whether its launcher on {host} lives cannot be seen from here"
            return TrialState(trial=trial, state="UNKNOWN", reason=why, job=str(job["id"]))
        why = "its launcher ended before it started"
        return TrialState(trial=trial, state="CANCELLED", reason=why, job=str(job["id"]))
    last = started[-1]
    exits = _exits(last)
    if exits is None:
        if launcher_lives:  # between its start and its lock, or its end and its note
            return TrialState(trial=trial, state="RUNNING", job=str(job["id"]), nodes=host, node_count=1)
        if not here:
            why = f"ran on {host}; nothing says how it ended, or whether it has"
            return TrialState(trial=trial, state="UNKNOWN", reason=why, job=str(job["id"]))
        why = "its launcher was killed while it ran"
        return TrialState(trial=trial, state="FAILED", reason=why, job=str(job["id"]))
    return _ended(trial, job, last, exits)


def _ended(trial: Trial, job: Mapping[str, Any], last: logs.StartLogs, exits: list[dict[str, Any]]) -> TrialState:
    from launcher.status.states import TrialState

    own = [note for note in exits if note["code"] and not note["ended_by_launcher"]]
    said = logs.failure(last)
    if own and all(note["code"] == -signal.SIGTERM for note in own):
        return TrialState(trial=trial, state="CANCELLED", reason="stopped while it ran", job=str(job["id"]))
    if not own:
        why = "ended well, but left no result.json"
        return TrialState(trial=trial, state="FAILED", reason=why, job=str(job["id"]), exit_code="0:0")
    first = min(own, key=lambda note: (note["time"], note["rank"]))
    code = int(first["code"])
    rank = said.rank if said and said.rank is not None else first["rank"]
    return TrialState(
        trial=trial,
        state="FAILED",
        reason=f"rank {rank}: {_died(code)}" if len(exits) > 1 else _died(code),
        error=said.error if said else "",
        rank=rank,
        exit_code=f"{max(code, 0)}:{max(-code, 0)}",
        job=str(job["id"]),
        log=said.log if said else last.logs[min(last.logs)],
    )


def _died(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _exits(start: logs.StartLogs) -> list[dict[str, Any]] | None:
    try:
        noted: list[dict[str, Any]] = json.loads((start.folder / f"{start.name}_exit.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return noted


def _age(start: logs.StartLogs) -> float:
    return max(log.stat().st_mtime for log in start.logs.values())


def alive(pid: int, before: float) -> bool:
    """Whether the process lives, and is not a younger one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (FileNotFoundError, ProcessLookupError):
        return False
    started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5), field 22
    return fields[0] not in "ZX" and started <= before + 2


def holder(lock: Path) -> int | None:
    """The process on this machine that holds a flock on the file, by /proc/locks (Linux)."""
    try:
        found = lock.stat()
        listed = Path("/proc/locks").read_text().splitlines()
    except (FileNotFoundError, PermissionError):
        return None
    for line in listed:  # 1: FLOCK  ADVISORY  WRITE 1234 08:01:1234567 0 EOF
        words = line.split()
        if len(words) >= 8 and words[1] == "FLOCK":
            major, minor, inode = words[5].split(":")
            if int(inode) == found.st_ino and os.makedev(int(major, 16), int(minor, 16)) == found.st_dev:
                return int(words[4])
    return None


def locked(lock: Path) -> bool:
    """Whether anybody, on this machine or (where the disk's locks are shared) another, holds the lock.

    It is tried only where the list of locks does not say, and for microseconds: a controller that starts at this very
    moment would take it for another's.
    """
    if holder(lock) is not None:
        return True
    try:
        with lock.open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
