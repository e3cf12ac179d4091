"""What Slurm answers about a whole sweep: one squeue, and one sacct where that is not enough."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.slurm import client, run
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.sweep import evaluation, result_file
from launcher.sweep.array_elements import Element, Job, elements, evaluations
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

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
    done: Mapping[int, float | None] = field(default_factory=dict)
    """The trials that had a result when Slurm was asked: the seconds that it names, by the trial's number."""

    def jobs(self, sweep: Sweep) -> list[Job]:
        """The jobs recorded in sweep.json, with the ids that were found since."""
        return [
            replace(job, id=self.claimed[job.script]) if not job.id and job.script in self.claimed else job
            for job in sweep.submitted()
        ]

    def on_other_cluster(self, part: Element) -> bool:
        """Whether the element is on another cluster than this machine's; that cluster is not asked."""
        return part.job.cluster not in ("", self.cluster)


def ask(sweep: Sweep) -> Answers:
    """Run one squeue for all arrays that have a trial without a result, and one sacct if that is not enough.

    Another squeue asks by the job name of the sweep if an sbatch left no id, or if the time of submission does not tell
    whether a job is the sweep's.
    """
    now, trials = time.time(), sweep.trials
    answers = Answers(now, claimed=_claim(sweep), done=_done(trials))
    jobs = answers.jobs(sweep)
    if any(job.cluster for job in jobs):
        answers = replace(answers, cluster=_cluster_name())
    elements_of = elements(jobs)
    parts_by_trial = [
        [part for part in elements_of.get(trial.number, []) if part.in_slurm and not answers.on_other_cluster(part)]
        for trial in trials
        if trial.number not in answers.done
    ]
    ids = sorted({int(part.job.id) for parts in parts_by_trial for part in parts} | _evaluations(trials, jobs, answers))
    if not ids:
        return answers
    troubles = []
    queue: dict[str, QueueRow] | None = None
    account: dict[str, AccountRow] | None = None
    reused: set[str] = set()
    submitted = {part.name: part for parts in parts_by_trial for part in parts}
    try:
        rows = client.squeue(ids, ended=True)
        reused = _reused(rows, submitted, sweep)
        queue = {row.name: row for row in rows if row.name not in reused}
    except run.SlurmError as error:
        troubles.append(f"squeue {_trouble(error)}: which trials wait or run is not certain")
    if queue is None or any(parts and not _alive(parts, queue) for parts in parts_by_trial):
        try:
            account = {row.name: row for row in client.sacct(ids, name=_job_name(sweep)) if row.name not in reused}
        except run.SlurmError as error:
            troubles.append(f"sacct {_trouble(error)}: it is not fully known how trials ended")
    return replace(answers, queue=queue, account=account, troubles=tuple(troubles), reused=frozenset(reused))


def _done(trials: Iterable[Trial]) -> dict[int, float | None]:
    """Each result is read once: a sweep may have thousands."""
    results = ((trial.number, trial.result()) for trial in trials)
    return {number: result_file.seconds(result) for number, result in results if result is not None}


def _evaluations(trials: Iterable[Trial], jobs: Sequence[Job], answers: Answers) -> set[int]:
    """The arrays of this cluster with an evaluation that is not complete."""
    parts = {number: of_trial[-1] for number, of_trial in evaluations(jobs).items()}
    here = [it for it in trials if it.number in parts and not answers.on_other_cluster(parts[it.number])]
    return {int(parts[it.number].job.id) for it in here if not evaluation.read(it.folder).complete}


def _reused(rows: Iterable[QueueRow], submitted: Mapping[str, Element], sweep: Sweep) -> set[str]:
    """The names of the elements in `submitted` that are other jobs now. Raises SlurmError.

    Slurm reuses job ids when its counter wraps around, and other clusters have the same ids. A job is the sweep's if it
    was submitted when the sweep says. A requeue gives a job a new time of submission, and clocks can be wrong: then its
    user and its name decide. The name has the sweep's id in it.
    """
    doubtful = {row.name: row for row in rows if row.name in submitted and not _agrees(row, submitted[row.name])}
    if not doubtful:
        return set()
    name = _job_name(sweep)
    if name is None:
        return {element for element, row in doubtful.items() if not row.restarts}
    arrays = sorted({int(submitted[element].job.id) for element in doubtful})
    ours = client.squeue(arrays, name=name, user=sweep.data["user"], ended=True)
    return set(doubtful) - {row.name for row in ours}


def _agrees(row: QueueRow, part: Element) -> bool:
    """Whether the job was submitted when the sweep says."""
    if row.submitted is None:
        return True
    delay = row.submitted - part.job.submitted.timestamp()
    # A continuation's time is that of a file, which may have been copied since. A job that recorded itself had waited
    # in the queue before. A job that got the id later would be younger than the record.
    if delay < 0 and (part.job.first is not None or part.job.recorded_once_started):
        return True
    return abs(delay) <= _SUBMITTED_SLACK_S


def _job_name(sweep: Sweep) -> str | None:
    """The name of the sweep's jobs, which no other job has. None if there is none that Slurm can look for."""
    names = {" ".join(job.name.split()) for job in sweep.jobs if job.kind == "slurm" and job.name}
    name = names.pop() if len(names) == 1 else ""
    return name if sweep.data["id"] in name and client.can_look_for(name) else None


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
    nameless = [job for job in known if job.kind == "slurm" and not job.id and job.name]
    name = " ".join(nameless[-1].name.split()) if nameless else ""
    if not client.can_look_for(name):
        return {}
    try:
        rows = client.squeue(name=name, user=sweep.data["user"], ended=True)
    except run.SlurmError:
        return {}
    known_ids = {int(job.id) for job in known if job.has_array_id}
    strangers = sorted({row.array_id for row in rows if row.array_id} - known_ids)
    if len(strangers) != 1:
        return {}
    size = len({row.task_id for row in rows if row.array_id == strangers[0]})
    same = [job for job in nameless if job.size == size]
    return {same[-1].script: str(strangers[0])} if same else {}


def _alive(parts: Iterable[Element], queue: Mapping[str, QueueRow]) -> bool:
    return any(part.name in queue and not queue[part.name].state.ended for part in parts)


def _trouble(error: run.SlurmError) -> str:
    if isinstance(error, run.SlurmMissing):
        return "does not answer (not found on this machine)"
    if error.code == 0:
        return f"answers what cannot be read ({error.why[:120]})"
    return f"does not answer ({(error.message or str(error))[:120]})"
