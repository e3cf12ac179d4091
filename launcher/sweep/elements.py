"""Which array element (or local run) was submitted for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Element:
    """The array element (or part of a local run) that runs a trial."""

    job: Mapping[str, Any]
    """The record of the submission; see Sweep.submitted()."""
    index: int

    @property
    def name(self) -> str:
        """`69_2`, as scancel takes it."""
        return f"{self.job['id']}_{self.index}"

    @property
    def in_slurm(self) -> bool:
        """Whether it is an element of an array whose id is known."""
        return has_array_id(self.job)


def elements(jobs: Sequence[Mapping[str, Any]]) -> dict[int, list[Element]]:
    """What was submitted for each trial, oldest first, by the trial's number.

    Several trials may have the same element (cluster.trials_per_node).
    """
    by_trial: dict[int, list[Element]] = {}
    for job in jobs:
        for place, number in enumerate(job["trials"]):
            index = job.get("first", 0) + place // job.get("share", 1)
            by_trial.setdefault(number, []).append(Element(job, index))
    return by_trial


def has_array_id(job: Mapping[str, Any]) -> bool:
    """Whether a submission is a Slurm array with a known id."""
    return job["kind"] == "slurm" and bool(job["id"])
