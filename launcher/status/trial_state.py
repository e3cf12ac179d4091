"""The state of one trial at one moment: the one model that `status`, `watch`, `wait=true` and local runs share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.status.answers import Answers
from launcher.sweep.folder import Sweep
from launcher.sweep.metrics import TrialProgress
from launcher.sweep.starts import Start
from launcher.sweep.trial import Trial

StateName = Literal["WAITING", "RUNNING", "STOPPING", "DONE", "FAILED", "CANCELLED", "UNSUBMITTED", "UNKNOWN"]
#: In the order in which counts are shown.
STATE_NAMES: tuple[StateName, ...] = (
    "RUNNING", "STOPPING", "WAITING", "DONE", "FAILED", "CANCELLED", "UNSUBMITTED", "UNKNOWN",
)  # fmt: skip
LIVE = frozenset({"WAITING", "RUNNING", "STOPPING", "UNKNOWN"})
"""The states of trials that may still become DONE by themselves."""
ENDED_BADLY = frozenset({"FAILED", "CANCELLED", "UNSUBMITTED"})


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """What one trial is doing, or how it ended. A trial is DONE only if its result.json is there."""

    trial: Trial
    state: StateName
    reason: str = ""
    """Why the trial waits or how it ended; "" if there is nothing to report."""
    error: str = ""
    """The error of the rank that failed first, in one line. In a local run, also an error after the trial was done."""
    rank: int | None = None
    """The rank that failed first, if that is known."""
    slurm: str = ""
    """Slurm's own word, such as TIMEOUT."""
    slurm_reason: str = ""
    """Slurm's own reason, such as JobArrayTaskLimit."""
    exit_code: str = ""
    """As sacct writes it, `3:0` (code:signal), with the steps' code if that differs; "" if it is not known."""
    job: str = ""
    """`69_2`, as scancel takes it, `69_2;b` on another cluster b, or `host:pid` of a local launcher."""
    nodes: str = ""
    node_count: int | None = None
    elapsed: float | None = None
    """Seconds since its last start began; for a done trial, the seconds in its result."""
    limit: float | None = None
    """The time limit in seconds; inf: none."""
    restarts: int = 0
    """How often the trial was started again, by requeues and retries."""
    expected: float | None = None
    """When Slurm expects it to start, in seconds since 1970."""
    evaluating: bool = False
    """Whether this launcher's evaluation of the trial, which is done, runs at the moment."""
    evaluation: str = ""
    """How far the evaluation of its answers is, in words; "" where there is none."""
    evaluation_job: str = ""
    """The element of an array that waits to evaluate it, or does: `71_2`; "" where there is none. `71_2;b`: it may do
    so on another cluster b."""
    progress: TrialProgress = field(default_factory=TrialProgress)
    log: Path | None = None
    """The log to read, from the last start: that of the rank that failed, else rank 0's."""
    starts: tuple[Start, ...] = ()
    """On Slurm: its starts, oldest first."""

    @property
    def remark(self) -> str:
        """Why the trial is in its state: the error of a rank, and the reason that Slurm or the launcher gives."""
        if self.state not in ENDED_BADLY or self.error in self.reason:
            return self.reason
        return f"{self.error}; {self.reason}" if self.reason else self.error


@dataclass(frozen=True)
class Look:
    """All trials of a sweep at one moment."""

    sweep: Sweep
    trials: list[TrialState]
    answers: Answers

    @property
    def counts(self) -> dict[StateName, int]:
        return count(self.trials)

    @property
    def exit_code(self) -> int:
        """0: all trials are done; 3: some may still become done; 1: all have ended, and some have no result."""
        names = set(self.counts)
        return 3 if names & LIVE else 1 if names & ENDED_BADLY else 0


def count(states: list[TrialState]) -> dict[StateName, int]:
    """The number of trials in each state that occurs."""
    counts = Counter(state.state for state in states)
    return {name: counts[name] for name in STATE_NAMES if counts[name]}


def counts_text(states: list[TrialState]) -> str:
    """`2 running, 1 waiting`"""
    return ", ".join(f"{number} {name.lower()}" for name, number in count(states).items())
