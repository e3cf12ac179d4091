"""The state of a trial that was started on this machine, from its controller's lock and the files of its ranks."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

from launcher import whole_file
from launcher.status.trial_state import TrialState
from launcher.sweep import logs
from launcher.sweep.array_elements import Job
from launcher.sweep.trial import Trial


def state(trial: Trial, job: Job) -> TrialState:
    """The state of a trial without a result, whose last start was by the local launcher of `job`."""
    host, _, pid = job.id.rpartition(":")
    here = host == socket.gethostname()
    submitted = job.submitted.timestamp()
    starts = [start for start in logs.by_start(trial.folder) if start.local and start.last_written >= submitted]
    base = TrialState(trial=trial, state="UNKNOWN", job=job.id)
    if locked(trial.folder / "log" / "lock"):
        return replace(base, state="RUNNING", nodes=host, node_count=1)
    launcher_lives = here and alive(int(pid), submitted)
    if not starts:
        if launcher_lives:
            return replace(base, state="WAITING", reason="waits for the trials before it")
        if not here:
            why = f"has not started; cannot see from here whether its launcher on {host} still runs"
            return replace(base, reason=why)
        return replace(base, state="CANCELLED", reason="its launcher ended before it started")
    last = starts[-1]
    if last.exits() is None:
        if launcher_lives:  # it has started but not yet locked, or ended but not yet written its note
            return replace(base, state="RUNNING", nodes=host, node_count=1)
        if not here:
            return replace(base, reason=f"ran on {host}; cannot see from here whether and how it ended")
        return replace(base, state="FAILED", reason="its launcher was killed while it ran")
    return ended(base, last)


def ended(base: TrialState, start: logs.StartLogs) -> TrialState:
    """The state of a trial without a result whose controller has recorded how its ranks ended."""
    failures = logs.local_failures(start)
    if not failures:
        return replace(base, state="FAILED", reason="all ranks exited with 0, but left no result.json", exit_code="0:0")
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
    """How a process ended, from Python's exit code: below 0, a signal killed it."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (by the kernel, if memory ran out)" if name == "SIGKILL" else "")


def alive(pid: int, before: float) -> bool:
    """Whether the process still runs. A process that started after `before` is another one with the same pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (FileNotFoundError, ProcessLookupError):
        return False
    started = int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5), field 22
    return fields[0] not in "ZX" and started <= before + 2


def is_own(pid: int, word: str = "python") -> bool:
    """Whether the process is this user's and has `word` in its command line. Check this before you signal it."""
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
    """Whether a process holds the lock, on this machine or (if the disk shares locks) on another one.

    If /proc/locks does not list the lock, it is taken for microseconds to find out: a controller that starts at that
    very moment would believe that another launcher runs the trial.
    """
    return holder(lock) is not None or whole_file.is_locked(lock)
