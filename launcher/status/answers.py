"""Slurm's word on a whole sweep: one squeue, and one sacct where that does not say enough."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.slurm import client
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.sweep.elements import Element, elements, has_array_id
from launcher.sweep.folder import Sweep


@dataclass(frozen=True)
class Answers:
    """Slurm's word on a sweep."""

    time: float
    """When it was asked."""
    queue: Mapping[str, QueueRow] | None = field(default_factory=dict)
    """By name, `69_2`; None: squeue did not answer."""
    account: Mapping[str, AccountRow] | None = None
    """None: sacct did not answer, or was not asked."""
    troubles: tuple[str, ...] = ()
    """What did not answer, a line each."""
    claimed: Mapping[str, str] = field(default_factory=dict)
    """Ids of arrays that sbatch made but could not tell any more, by the name of their script."""

    def jobs(self, sweep: Sweep) -> list[Mapping[str, Any]]:
        """What was submitted for the sweep, with the ids that are known."""
        return [
            {**job, "id": self.claimed[job["script"]]} if not job["id"] and job.get("script") in self.claimed else job
            for job in sweep.submitted()
        ]


def ask(sweep: Sweep) -> Answers:
    """One squeue for all arrays that have a trial without a result, one sacct if that does not say enough.

    Only where an sbatch has left no id does another squeue look for its array by the sweep's name for it.
    """
    claimed = _claim(sweep)
    parts = elements(Answers(0.0, claimed=claimed).jobs(sweep))
    open_ = [parts.get(trial.number, []) for trial in sweep.trials if trial.result() is None]
    ids = sorted({int(part.job["id"]) for those in open_ for part in those if part.in_slurm})
    now = time.time()
    if not ids:
        return Answers(now, claimed=claimed)
    troubles = []
    queue: dict[str, QueueRow] | None = None
    account: dict[str, AccountRow] | None = None
    try:
        queue = {row.name: row for row in client.squeue(ids, ended=True)}
    except client.SlurmError as error:
        troubles.append(f"squeue does not answer ({_said(error)}): what waits and what runs is not known for certain")
    if queue is None or any(any(part.in_slurm for part in those) and not _alive(those, queue) for those in open_):
        try:
            account = {row.name: row for row in client.sacct(ids)}
        except client.SlurmError as error:
            troubles.append(f"sacct does not answer ({_said(error)}): how trials ended is not known in full")
    return Answers(now, queue, account, tuple(troubles), claimed)


def _claim(sweep: Sweep) -> dict[str, str]:
    """The array of an sbatch that was killed, or took too long, after the controller had taken its job.

    Its name is the sweep's own. Silent where Slurm is away: the question for the others says so.
    """
    known = sweep.submitted()
    nameless = [job for job in known if job["kind"] == "slurm" and not job["id"] and job.get("name")]
    if not nameless or "," in nameless[-1]["name"]:
        return {}
    try:
        rows = client.squeue(name=" ".join(nameless[-1]["name"].split()), user=sweep.data["user"], ended=True)
    except client.SlurmError:
        return {}
    strangers = sorted(
        {row.array_id for row in rows if row.array_id} - {int(j["id"]) for j in known if has_array_id(j)}
    )
    if len(strangers) != 1:
        return {}
    size = len({row.task_id for row in rows if row.array_id == strangers[0]})
    same = [job for job in nameless if math.ceil(len(job["trials"]) / job.get("share", 1)) == size]
    return {same[-1]["script"]: str(strangers[0])} if same else {}


def _alive(parts: Iterable[Element], queue: Mapping[str, QueueRow]) -> bool:
    return any(part.name in queue and not queue[part.name].state.ended for part in parts)


def _said(error: client.SlurmError) -> str:
    if isinstance(error, client.SlurmMissing):
        return "not found on this machine"
    return (error.said or str(error))[:120]
