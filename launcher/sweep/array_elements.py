"""What was submitted for a sweep, and which array element (or local run) runs each trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from launcher.sweep.records import Kind, SubmissionRecord


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission: an array of trials or of their evaluations, a run on this machine, a stage before or after."""

    kind: Kind
    id: str
    """The array's or the stage's id; HOST:PID of a local launcher; "" where sbatch has not written it."""
    trials: Sequence[int]
    submitted: datetime
    script: str = ""
    """The script's name in the folder slurm/."""
    name: str = ""
    """Slurm's name of the job."""
    share: int = 1
    """Trials that one element runs side by side."""
    code: int = 0
    """The number of the copy of the launcher's code that its trials run."""
    first: int | None = None
    """Of a continuation, an array with one element: the index of that element."""
    cluster: str = ""
    """The cluster that has it; several, separated by commas, if sbatch was to choose and returned no id. "" in records
    of earlier versions."""
    cluster_named: bool = False
    """Whether sbatch itself named the cluster: it may be another one than that of the machine that submitted it."""

    @classmethod
    def from_json(cls, record: SubmissionRecord) -> Job:
        """Raises KeyError, TypeError or ValueError for a record that is none."""
        trials = list(record["trials"])
        if record["kind"] not in get_args(Kind) or not all(isinstance(number, int) for number in trials):
            raise ValueError(f"job {record['id']}")
        return cls(
            kind=record["kind"],
            id=str(record["id"]),
            trials=trials,
            submitted=datetime.fromisoformat(record["submitted"]),
            script=record.get("script", ""),
            name=record.get("name", ""),
            share=record.get("share", 1),
            code=record.get("code", 0),
            cluster=record.get("cluster", ""),
        )

    def to_json(self) -> SubmissionRecord:
        record: SubmissionRecord = {
            "kind": self.kind,
            "id": self.id,
            "trials": list(self.trials),
            "submitted": self.submitted.isoformat(timespec="seconds"),
        }
        if self.script:
            record["script"] = self.script
        if self.name:
            record["name"] = self.name
        if self.share > 1:
            record["share"] = self.share
        if self.code:
            record["code"] = self.code
        if self.cluster:
            record["cluster"] = self.cluster
        return record

    @property
    def recorded_once_started(self) -> bool:
        """Whether its own first element recorded it, as it started: an array that was submitted by hand."""
        return self.kind == "slurm" and not self.script

    @property
    def has_array_id(self) -> bool:
        """Whether it is a Slurm array with a known id."""
        return self.kind == "slurm" and bool(self.id)

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.ceil(len(self.trials) / self.share)


@dataclass(frozen=True)
class Element:
    """The array element (or part of a local run) that runs a trial."""

    job: Job
    index: int

    @property
    def name(self) -> str:
        """`69_2`, as scancel takes it."""
        return f"{self.job.id}_{self.index}"

    @property
    def in_slurm(self) -> bool:
        """Whether it is an element of an array whose id is known."""
        return self.job.has_array_id


def elements(jobs: Sequence[Job]) -> dict[int, list[Element]]:
    """What was submitted for each trial, oldest first, by the trial's number.

    Several trials may have the same element (cluster.trials_per_node).
    """
    return _by_trial(job for job in jobs if job.kind != "evaluation")


def evaluations(jobs: Sequence[Job]) -> dict[int, list[Element]]:
    """What was submitted for the evaluation of each trial, oldest first, by the trial's number."""
    return _by_trial(job for job in jobs if job.kind == "evaluation")


def _by_trial(jobs: Iterable[Job]) -> dict[int, list[Element]]:
    by_trial: dict[int, list[Element]] = {}
    for job in jobs:
        for place, number in enumerate(job.trials):
            by_trial.setdefault(number, []).append(Element(job, (job.first or 0) + place // job.share))
    return by_trial
