"""What Slurm answers about a whole sweep: one squeue, and one sacct where that is not enough."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from launcher.slurm import client, run
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.sweep.elements import Element, elements, has_array_id
from launcher.sweep.folder import Sweep

# A job was submitted when sweep.json says so, give or take this: clocks differ, and sbatch may wait for its controller.
_SUBMITTED_SLACK_S = 900.0


@dataclass(frozen=True)
class Answers:
    """What Slurm answered about a sweep."""

    time: float
    """When Slurm was asked, in seconds since 1970."""
    queue: Mapping[str, QueueRow] | None = field(default_factory=dict)
    """By element, `69_2`; None: squeue did not answer."""
    account: Mapping[str, AccountRow] | None = None
    """By element; None: sacct did not answer, or was not asked."""
    troubles: tuple[str, ...] = ()
    """Which commands did not answer, one line each."""
    claimed: Mapping[str, str] = field(default_factory=dict)
    """Ids of arrays whose sbatch was killed before their ids could be recorded, by the name of their script."""
    reused: frozenset[str] = frozenset()
    """The sweep's elements whose job ids Slurm has since given to other jobs."""
    cluster: str = ""
    """This machine's cluster; set only if a job may be on another cluster of a multi-cluster site."""

    def jobs(self, sweep: Sweep) -> list[Mapping[str, Any]]:
        """The jobs recorded in sweep.json, with the ids that were found since."""
        return [
            {**job, "id": self.claimed[job["script"]]} if not job["id"] and job.get("script") in self.claimed else job
            for job in sweep.submitted()
        ]

    def on_other_cluster(self, part: Element) -> bool:
        """Whether the element is on another cluster than this machine's; that cluster is not asked."""
        return part.job.get("cluster", "") not in ("", self.cluster)


def ask(sweep: Sweep) -> Answers:
    """Run one squeue for all arrays that have a trial without a result, and one sacct if that is not enough.

    If an sbatch left no id, another squeue looks for its array by the job name of the sweep.
    """
    claimed = _claim(sweep)
    now = time.time()
    answers = Answers(now, claimed=claimed)
    jobs = answers.jobs(sweep)
    if any(job.get("cluster") for job in jobs):
        answers = Answers(now, claimed=claimed, cluster=_cluster_name())
    elements_of = elements(jobs)
    parts_by_trial = [
        [part for part in elements_of.get(trial.number, []) if part.in_slurm and not answers.on_other_cluster(part)]
        for trial in sweep.trials
        if trial.result() is None
    ]
    ids = sorted({int(part.job["id"]) for parts in parts_by_trial for part in parts})
    if not ids:
        return answers
    troubles = []
    queue: dict[str, QueueRow] | None = None
    account: dict[str, AccountRow] | None = None
    reused: set[str] = set()
    submitted = {part.name: part for parts in parts_by_trial for part in parts}
    try:
        rows = client.squeue(ids, ended=True)
        reused = {row.name for row in rows if row.name in submitted and not _is_ours(row, submitted[row.name])}
        queue = {row.name: row for row in rows if row.name not in reused}
    except run.SlurmError as error:
        troubles.append(f"squeue does not answer ({_words(error)}): which trials wait or run is not certain")
    if queue is None or any(parts and not _alive(parts, queue) for parts in parts_by_trial):
        try:
            account = {row.name: row for row in client.sacct(ids) if row.name not in reused}
        except run.SlurmError as error:
            troubles.append(f"sacct does not answer ({_words(error)}): it is not fully known how trials ended")
    return Answers(now, queue, account, tuple(troubles), claimed, frozenset(reused), answers.cluster)


def _is_ours(row: QueueRow, part: Element) -> bool:
    """Whether the job in the queue is the one that was submitted: Slurm reuses job ids when its counter wraps around.

    A requeue gives a job a new time of submission.
    """
    if row.submitted is None:
        return True
    delay = row.submitted - datetime.fromisoformat(part.job["submitted"]).timestamp()
    if delay > _SUBMITTED_SLACK_S:
        return row.restarts > 0
    return delay > -_SUBMITTED_SLACK_S or "first" in part.job  # a continuation's time is that of a copied file


def _cluster_name() -> str:
    """The name of this machine's cluster; "" where Slurm does not answer."""
    try:
        return client.cluster().name
    except run.SlurmError:
        return ""


def _claim(sweep: Sweep) -> dict[str, str]:
    """Find the array of an sbatch that was killed, or timed out, after the controller had accepted its job.

    It is found by the job name of the sweep. If Slurm does not answer, the squeue for the other arrays reports that.
    """
    known = sweep.submitted()
    nameless = [job for job in known if job["kind"] == "slurm" and not job["id"] and job.get("name")]
    if not nameless or "," in nameless[-1]["name"]:
        return {}
    try:
        rows = client.squeue(name=" ".join(nameless[-1]["name"].split()), user=sweep.data["user"], ended=True)
    except run.SlurmError:
        return {}
    known_ids = {int(job["id"]) for job in known if has_array_id(job)}
    strangers = sorted({row.array_id for row in rows if row.array_id} - known_ids)
    if len(strangers) != 1:
        return {}
    size = len({row.task_id for row in rows if row.array_id == strangers[0]})
    same = [job for job in nameless if math.ceil(len(job["trials"]) / job.get("share", 1)) == size]
    return {same[-1]["script"]: str(strangers[0])} if same else {}


def _alive(parts: Iterable[Element], queue: Mapping[str, QueueRow]) -> bool:
    return any(part.name in queue and not queue[part.name].state.ended for part in parts)


def _words(error: run.SlurmError) -> str:
    if isinstance(error, run.SlurmMissing):
        return "not found on this machine"
    return (error.said or str(error))[:120]
