"""Detects that a trial hangs: each rank then prints its stack traces to its log and exits with code 75.

If one rank hangs (a stopped process, a GPU or a disk that does not answer), all others wait for it in a collective, for
half an hour or for ever. Each rank has its own watchdog, a thread. Standard library only.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from launcher.sweep import rank_errors
from launcher.train import ownership
from launcher.train.metrics_file import MetricsFile

EXIT_CODE = os.EX_TEMPFAIL  # 75
FIRST = 1800.0
"""Seconds of silence allowed before the first step (loading a large model) and in a new phase (a first save)."""
LEAST, FACTOR = 300.0, 10.0
"""Otherwise the bound is FACTOR times the longest silence of this phase so far, and at least LEAST seconds."""
_POLL, _FENCE_POLL = 1.0, 4.0
_LINGER = 5.0  # time for the other ranks to record their stacks before Slurm ends them because of this exit code
_SUSPENDED = 10.0  # more than this between two polls means that the whole process was suspended


class Watchdog:
    """Tracks one rank's signs of life. `hang_after` is cluster.hang_after, seconds; None: bound from past silences."""

    def __init__(self, hang_after: float | None = None) -> None:
        self.phase = ""
        self._hang_after = hang_after
        self._last = time.monotonic()
        self._stepped = False
        self._longest: dict[str, float] = {}

    def alive(self, phase: str, step_done: bool = False) -> None:
        """Record a sign of life."""
        now = time.monotonic()
        self._longest[self.phase] = max(self._longest.get(self.phase, 0.0), now - self._last)
        self.phase, self._last = phase, now
        self._stepped = self._stepped or step_done

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last

    def suspended(self, seconds: float) -> None:
        """Record that this process was suspended for so long (scontrol suspend, a debugger): that is not silence."""
        self._last += seconds

    def bound(self) -> float:
        """Seconds of silence that count as a hang."""
        if not self._stepped:
            return max(FIRST, self._hang_after or 0.0)
        if self._hang_after is not None:
            return self._hang_after
        longest = self._longest.get(self.phase)
        return FIRST if longest is None else max(LEAST, FACTOR * longest)


def start(trial_dir: Path, rank: int, progress: MetricsFile, hang_after: float | None = None) -> None:
    """Watch this process from now until it ends."""
    dog = Watchdog(hang_after)
    progress.life = dog.alive
    threading.Thread(target=_run, args=(dog, trial_dir, rank, progress), name="watchdog", daemon=True).start()


def _run(dog: Watchdog, trial_dir: Path, rank: int, progress: MetricsFile) -> None:
    looked, fence = time.monotonic(), 0.0
    while dog.silence() < dog.bound():
        time.sleep(_POLL)
        now = time.monotonic()
        if now - looked > _SUSPENDED:
            dog.suspended(now - looked)
        looked = now
        if now - fence > _FENCE_POLL:
            fence = now
            ownership.check(trial_dir)
            # If native code holds Python's GIL, this thread cannot run either; faulthandler's does not need it.
            faulthandler.dump_traceback_later(dog.bound() + 60.0)
    try:
        _tell(dog, trial_dir, rank, progress)
    finally:  # exit even if the disk is full
        os._exit(EXIT_CODE)


def _tell(dog: Watchdog, trial_dir: Path, rank: int, progress: MetricsFile) -> None:
    message = f"no sign of life for {dog.silence():.0f} s (bound {dog.bound():.0f} s), last in phase {dog.phase!r}"
    print(f"hung: {message}; the stacks of this rank:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
    _dump_neighbour()
    _note(trial_dir, rank, message)
    progress.phase("hung", message)
    sys.stdout.flush()
    time.sleep(_LINGER)


def _note(trial_dir: Path, rank: int, message: str) -> None:
    """Record the hang like any rank's error: srun's own exit code covers one rank only."""
    attempt = os.environ.get("TRIAL_ATTEMPT")
    if attempt:
        rank_errors.write_text(rank_errors.path(trial_dir / "log", attempt, rank), "Hung", message)


def _dump_neighbour() -> None:
    """Print the stacks of the next rank on this node with py-spy: if it is the stopped one, it cannot do so itself."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    ranks = siblings()
    if not program or len(ranks) < 2:
        return
    neighbour = ranks[(ranks.index(os.getpid()) + 1) % len(ranks)]
    # --nonblocking does not pause the process: pausing one that is stopped would wait for ever.
    command = [program, "dump", "--nonblocking", "--pid", str(neighbour)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        output = "py-spy did not answer"
    print(f"the stacks of process {neighbour}, a rank on this node:\n{output}", file=sys.stderr, flush=True)


def siblings() -> list[int]:
    """Process ids of this trial's ranks on this node, this one included: they have the same command line."""
    mine = Path("/proc/self/cmdline").read_bytes()
    pids = {os.getpid()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == mine:
                pids.add(int(path.parent.name))
        except OSError:  # the process has ended, or belongs to another user
            continue
    return sorted(pids)
