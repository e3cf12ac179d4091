"""The state of a trial that was started on this machine, by the lock of its controller and what its ranks left."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher import whole_file
from launcher.status.trial_state import TrialState
from launcher.sweep import logs
from launcher.sweep.trial import Trial


def state(trial: Trial, job: Mapping[str, Any]) -> TrialState:
    """The state of a trial without a result, whose last start was by the local launcher of `job`."""
    host, _, pid = str(job["id"]).rpartition(":")
    here = host == socket.gethostname()
    submitted = datetime.fromisoformat(job["submitted"]).timestamp()
    starts = [start for start in logs.by_start(trial.folder) if start.local and start.last_written >= submitted]
    base = TrialState(trial=trial, state="UNKNOWN", job=str(job["id"]))
    if locked(trial.folder / "log" / "lock"):
        return replace(base, state="RUNNING", nodes=host, node_count=1)
    launcher_lives = here and alive(int(pid), submitted)
    if not starts:
        if launcher_lives:
            return replace(base, state="WAITING", reason="waits for the trials before it")
        if not here:
            why = f"has not started; whether its launcher on {host} lives cannot be seen from here"
            return replace(base, reason=why)
        return replace(base, state="CANCELLED", reason="its launcher ended before it started")
    last = starts[-1]
    if last.exits() is None:
        if launcher_lives:  # between its start and its lock, or its end and its note
            return replace(base, state="RUNNING", nodes=host, node_count=1)
        if not here:
            return replace(base, reason=f"ran on {host}; whether and how it has ended is not known here")
        return replace(base, state="FAILED", reason="its launcher was killed while it ran")
    return ended(base, last)


def ended(base: TrialState, start: logs.StartLogs) -> TrialState:
    """The state of a trial without a result, whose controller has noted how its ranks ended."""
    failures = logs.local_failures(start)
    if not failures:
        return replace(base, state="FAILED", reason="ended well, but left no result.json", exit_code="0:0")
    if all(failure.code == -signal.SIGTERM and not failure.error for failure in failures):
        return replace(base, state="CANCELLED", reason="stopped while it ran")
    first = failures[0]
    reason = died(first.code)
    return replace(
        base,
        state="FAILED",
        reason=f"rank {first.rank}: {reason}" if len(start.exits() or ()) > 1 else reason,
        error=first.error,
        rank=first.rank,
        exit_code=f"{max(first.code, 0)}:{max(-first.code, 0)}",
        log=first.log,
    )


def died(code: int) -> str:
    """How a process ended, by the exit code that Python gives: below 0 the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (by the kernel, if memory ran out)" if name == "SIGKILL" else "")


def alive(pid: int, before: float) -> bool:
    """Whether the process lives, and is not a younger one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (FileNotFoundError, ProcessLookupError):
        return False
    started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5), field 22
    return fields[0] not in "ZX" and started <= before + 2


def is_own(pid: int, word: str = "python") -> bool:
    """Whether the process is this user's, with the word in its command line: before it is sent a signal."""
    process = Path(f"/proc/{pid}")
    try:
        return process.stat().st_uid == os.geteuid() and word.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def holder(lock: Path) -> int | None:
    """The process on this machine that holds a flock on the file, by /proc/locks (Linux)."""
    try:
        file = lock.lstat()
        listed = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in listed:  # 1: FLOCK  ADVISORY  WRITE 1234 08:01:1234567 0 EOF
        words = line.split()
        if len(words) >= 8 and words[1] == "FLOCK":
            major, minor, inode = words[5].split(":")
            if int(inode) == file.st_ino and os.makedev(int(major, 16), int(minor, 16)) == file.st_dev:
                return int(words[4])
    return None


def locked(lock: Path) -> bool:
    """Whether a process on this machine or (where the disk's locks are shared) another one holds the lock.

    The lock is taken to find out only where /proc/locks does not list it, and for microseconds: a controller that
    starts at that very moment would believe that another launcher runs the trial.
    """
    if holder(lock) is not None:
        return True
    try:
        with whole_file.regular(lock) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
