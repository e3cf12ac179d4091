"""What trials cost: time, ranks, waiting, restarts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from launcher.report.recorded import Result, Validation, integer, validation
from launcher.sweep.folder import Sweep
from launcher.sweep.metrics import STARTING, Line
from launcher.sweep.trial import Trial


@dataclass(frozen=True)
class TrialCost:
    """What a trial cost, in seconds of wall time."""

    seconds: float | None
    """The sum over its starts, without the gaps between them."""
    ranks: int | None
    device: str
    """"gpu", "cpu"; "" if it is not known."""
    waited: float | None
    """From its submission to its first line of metrics; trials that run one after another wait for each other."""
    restarts: int

    @property
    def hours(self) -> float | None:
        """Rank-hours: GPU-hours, or process-hours on a CPU."""
        return None if self.seconds is None or self.ranks is None else self.seconds * self.ranks / 3600


@dataclass
class Course:
    """The course of a trial, as metrics.jsonl shows it."""

    starts: list[list[float]] = field(default_factory=list)
    """[time of the first line, time of the last] of each of its starts."""
    validations: dict[int, Validation] = field(default_factory=dict)
    """By step; if a step was made twice, the last."""
    step: int | None = None
    max_steps: int | None = None

    @property
    def seconds(self) -> float | None:
        return sum(last - first for first, last in self.starts) if self.starts else None


def read_course(lines: Iterable[Line]) -> Course:
    """Read the lines in one pass, so that a file of any size takes little memory."""
    course, before = Course(), ""
    for line in lines:
        phase = str(line.get("phase", "training"))
        if not course.starts or (phase == STARTING and before != STARTING):
            course.starts.append([line["time"], line["time"]])
        course.starts[-1][1] = line["time"]
        before = phase
        step = integer(line.get("step"))
        if step is None:
            continue
        course.step = max(step, course.step or 0)
        course.max_steps = integer(line.get("max_steps")) or course.max_steps
        if "val/loss" in line and (seen := validation(line)):
            course.validations[step] = seen
    return course


def cost(
    trial: Trial, result: Result | None, course: Course, ranks: int | None, restarts: int, jobs: Submitted
) -> TrialCost:
    """`ranks`: as the config asks for; `restarts`: as Slurm counts them."""
    waited = None
    if course.starts and (submitted := jobs.get(trial.number)) is not None:
        waited = max(0.0, course.starts[0][0] - submitted)
    return TrialCost(
        seconds=result.seconds if result and result.seconds is not None else course.seconds,
        ranks=result.ranks if result and result.ranks is not None else ranks,
        device=result.device.partition(",")[0] if result else "",
        waited=waited,
        restarts=max(restarts, len(course.starts) - 1, 0),
    )


Submitted = dict[int, float]
"""When each trial was first submitted, by its number; seconds since the epoch."""


def submitted(sweep: Sweep) -> Submitted:
    times: Submitted = {}
    for job in sweep.jobs:
        for number in job.trials:
            times.setdefault(number, job.submitted.timestamp())
    return times


def unit(costs: Sequence[TrialCost]) -> str:
    """What a rank-hour is in these trials."""
    devices = frozenset(cost.device for cost in costs) - {""}
    return {frozenset({"gpu"}): "GPU-hours", frozenset({"cpu"}): "CPU-hours"}.get(devices, "rank-hours")
