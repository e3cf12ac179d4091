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
from launcher.sweep.records import Kind
from launcher.sweep.trial import Trial

# A job was submitted when sweep.json says so, give or take this: clocks differ, and sbatch may wait for its controller.
_SUBMITTED_SLACK_S = 900.0

#: By kind, the name of the sweep's jobs, which no other job has. None: Slurm cannot look for it, or there is none.
Names = Mapping[Kind, str | None]


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
    unclaimed: bool = False
    """Whether Slurm may have arrays whose ids are not recorded: it did not answer, or which they are is not clear."""
    reused: frozenset[str] = frozenset()
    """The sweep's elements whose job ids Slurm has since given to other jobs."""
    cluster: str | None = None
    """This machine's cluster. None: not asked, since Slurm here knows the sweep's jobs; "": it did not answer."""
    known: frozenset[str] = frozenset()
    """Ids of the sweep's arrays that Slurm here has for certain."""
    done: Mapping[int, float | None] = field(default_factory=dict)
    """The trials that had a result when Slurm was asked: the seconds that it names, by the trial's number."""

    def jobs(self, sweep: Sweep) -> list[Job]:
        """The jobs recorded in sweep.json, with the ids that were found since."""
        return [
            replace(job, id=self.claimed[job.script]) if not job.id and job.script in self.claimed else job
            for job in sweep.submitted()
        ]

    def on_other_cluster(self, part: Element) -> bool:
        """Whether the element is, or may be, on another cluster than this machine's; that cluster is not asked."""
        if self.cluster is None or not part.job.cluster or part.job.id in self.known:
            return False
        return self.cluster.lower() not in part.job.cluster.lower().split(",")  # slurmdbd's names are in lower case


def ask(sweep: Sweep) -> Answers:
    """Run one squeue for all arrays that have a trial without a result, and one sacct if that is not enough.

    Another squeue asks by the job name of the sweep if an sbatch left no id, or if the time of submission does not tell
    whether a job is the sweep's. Only where Slurm here does not know an array, it is asked for its cluster's name.
    """
    trials, names = sweep.trials, _job_names(sweep)
    answers = _with_claimed(Answers(time.time(), done=_done(trials)), sweep)
    jobs = answers.jobs(sweep)
    if answers.queue is not None and any(job.cluster_named for job in jobs):
        answers = _with_cluster(answers)
    of_trial = elements(jobs)
    training = [of_trial.get(trial.number, []) for trial in trials if trial.number not in answers.done]
    evaluating = _evaluations(trials, jobs)
    asked = [[part for part in parts if part.in_slurm and not answers.on_other_cluster(part)] for parts in training]
    others = [part for parts in evaluating for part in parts if not answers.on_other_cluster(part)]
    submitted = {part.name: part for parts in [*asked, others] for part in parts}
    if submitted and answers.queue is not None:
        answers = _with_queue(answers, submitted, names, sweep.data["user"])
    if any(parts and (answers.queue is None or not _alive(parts, answers.queue)) for parts in asked):
        answers = _with_account(answers, [part for parts in asked for part in parts], names["slurm"])
    return _without_other_clusters(answers, [*training, *evaluating], submitted, names)


def _done(trials: Iterable[Trial]) -> dict[int, float | None]:
    """Each result is read once: a sweep may have thousands."""
    results = ((trial.number, trial.result()) for trial in trials)
    return {number: result_file.seconds(result) for number, result in results if result is not None}


def _evaluations(trials: Iterable[Trial], jobs: Sequence[Job]) -> list[list[Element]]:
    """What was submitted for each evaluation that is not complete, oldest first."""
    parts = evaluations(jobs)
    pending = [trial for trial in trials if parts.get(trial.number)]
    return [parts[it.number] for it in pending if not evaluation.read(it.folder).complete]


# -- the commands ------------------------------------------------------------------------------------------------------


def _with_claimed(answers: Answers, sweep: Sweep) -> Answers:
    """Look for arrays whose ids sbatch did not return."""
    try:
        claimed, unclaimed = _claim(sweep)
    except run.SlurmError as error:
        trouble = f"squeue {_trouble(error)}: whether it has jobs whose ids sbatch did not return is not certain"
        queue = None if error.unanswered else answers.queue  # then it would not answer the next question either
        return replace(answers, unclaimed=True, queue=queue, troubles=(*answers.troubles, trouble))
    return replace(answers, claimed=claimed, unclaimed=unclaimed)


def _with_queue(answers: Answers, submitted: Mapping[str, Element], names: Names, user: str) -> Answers:
    try:
        rows = client.squeue(sorted({int(part.job.id) for part in submitted.values()}), ended=True)
        reused = _reused(rows, submitted, names, user)
    except run.SlurmError as error:
        trouble = f"squeue {_trouble(error)}: which trials wait or run is not certain"
        return replace(answers, queue=None, troubles=(*answers.troubles, trouble))
    queue = {row.name: row for row in rows if row.name not in reused}
    return replace(answers, queue=queue, reused=frozenset(reused))


def _with_account(answers: Answers, parts: Iterable[Element], name: str | None) -> Answers:
    try:
        rows = client.sacct(sorted({int(part.job.id) for part in parts}), name=name)
    except run.SlurmError as error:
        trouble = f"sacct {_trouble(error)}: it is not fully known how trials ended"
        return replace(answers, troubles=(*answers.troubles, trouble))
    return replace(answers, account={row.name: row for row in rows if row.name not in answers.reused})


def _with_cluster(answers: Answers) -> Answers:
    try:
        return replace(answers, cluster=client.cluster_name())
    except run.SlurmError as error:
        trouble = f"scontrol {_trouble(error)}: it is not certain which jobs are on this cluster"
        return replace(answers, cluster="", troubles=(*answers.troubles, trouble))


# -- whose jobs they are -----------------------------------------------------------------------------------------------


def _without_other_clusters(
    answers: Answers, groups: Sequence[Sequence[Element]], submitted: Mapping[str, Element], names: Names
) -> Answers:
    """The answers without jobs that have the ids of the sweep's jobs on another cluster.

    `groups`: what was submitted for a trial or its evaluation, oldest first. `submitted`: what Slurm was asked for.
    """
    queue, account = answers.queue or {}, answers.account or {}
    rows: list[QueueRow | AccountRow] = [*queue.values(), *account.values()]
    found = [(row, submitted[row.name]) for row in rows if row.name in submitted]
    known = {part.job.id for row, part in found if _is_certain(row, part, names)}
    answers = replace(answers, known=frozenset(known))
    last = [([part for part in parts if _alive([part], queue)] or parts)[-1] for parts in groups if parts]
    unknown = any(part.job.cluster and part.job.id not in known for part in last)
    if unknown and answers.cluster is None and answers.queue is not None:
        answers = _with_cluster(answers)
    # Without squeue the name is not asked for either: what the accounting has under an uncertain id does not count.
    uncertain = [part for part in submitted.values() if part.job.cluster and part.job.id not in known]
    away = {int(part.job.id) for part in uncertain if answers.queue is None or answers.on_other_cluster(part)}
    return replace(
        answers,
        queue=None if answers.queue is None else {row.name: row for row in queue.values() if row.array_id not in away},
        account=None if answers.account is None else {r.name: r for r in account.values() if r.array_id not in away},
    )


def _is_certain(row: QueueRow | AccountRow, part: Element, names: Names) -> bool:
    """Whether a row that is not `_reused` can be of no other cluster: by its time, or since it has the sweep's name."""
    delay = _delay(row, part)
    return abs(delay) <= _SUBMITTED_SLACK_S or (delay > 0 and names[part.job.kind] is not None)


def _reused(rows: Iterable[QueueRow], submitted: Mapping[str, Element], names: Names, user: str) -> set[str]:
    """The names of the elements in `submitted` that are other jobs now. Raises SlurmError.

    Slurm reuses job ids when its counter wraps around, and other clusters have the same ids. A job is the sweep's if it
    was submitted when the sweep says. A requeue gives a job a new time of submission, and clocks can be wrong: then its
    user and its name decide. The name has the sweep's id in it.
    """
    doubtful = {row.name: row for row in rows if row.name in submitted and not _agrees(row, submitted[row.name])}
    reused: set[str] = set()
    for kind in sorted({submitted[element].job.kind for element in doubtful}):
        of_kind = {element: row for element, row in doubtful.items() if submitted[element].job.kind == kind}
        name = names[kind]
        if name is None:
            reused |= {element for element, row in of_kind.items() if not row.restarts}
            continue
        arrays = sorted({int(submitted[element].job.id) for element in of_kind})
        ours = client.squeue(arrays, name=name, user=user, ended=True)
        reused |= set(of_kind) - {row.name for row in ours}
    return reused


def _agrees(row: QueueRow, part: Element) -> bool:
    """Whether the job was submitted when the sweep says."""
    delay = _delay(row, part)
    # A continuation's time is that of a file, which may have been copied since. A job that recorded itself had waited
    # in the queue before. A job that got the id later would be younger than the record.
    if delay < 0 and (part.job.first is not None or part.job.recorded_once_started):
        return True
    return abs(delay) <= _SUBMITTED_SLACK_S


def _delay(row: QueueRow | AccountRow, part: Element) -> float:
    """Seconds from the time that the sweep names until Slurm got the job; 0 if Slurm does not say."""
    return 0.0 if row.submitted is None else row.submitted - part.job.submitted.timestamp()


def _job_names(sweep: Sweep) -> Names:
    """See Names."""
    names: dict[Kind, str | None] = {}
    kinds: tuple[Kind, ...] = ("slurm", "evaluation")
    for kind in kinds:
        given = {" ".join(job.name.split()) for job in sweep.jobs if job.kind == kind and job.name}
        name = given.pop() if len(given) == 1 else ""
        names[kind] = name if sweep.data["id"] in name and client.can_look_for(name) else None
    return names


def _claim(sweep: Sweep) -> tuple[dict[str, str], bool]:
    """Find the array of an sbatch that was killed, or timed out, after the controller had accepted its job.

    It is found by the job name of the sweep. Returns its id by its script, and whether there is an array of which it is
    not clear what it runs. Raises SlurmError.
    """
    known = sweep.submitted()
    nameless = [job for job in known if job.kind == "slurm" and not job.id and job.name]
    name = " ".join(nameless[-1].name.split()) if nameless else ""
    if not client.can_look_for(name):
        return {}, False
    rows = client.squeue(name=name, user=sweep.data["user"], ended=True)
    known_ids = {int(job.id) for job in known if job.has_array_id}
    indices: dict[int, set[int]] = {}
    for row in rows:
        if row.array_id and row.task_id is not None and row.array_id not in known_ids:
            indices.setdefault(row.array_id, set()).add(row.task_id)
    if len(indices) != 1:
        return {}, bool(indices)
    ((array, there),) = indices.items()
    # squeue forgets elements that ended some minutes ago
    same = [job for job in nameless if job.size == len(there)] or [job for job in nameless if job.size > max(there)]
    return ({same[-1].script: str(array)}, False) if same else ({}, True)


def _alive(parts: Iterable[Element], queue: Mapping[str, QueueRow]) -> bool:
    return any(part.name in queue and not queue[part.name].state.ended for part in parts)


def _trouble(error: run.SlurmError) -> str:
    if isinstance(error, run.SlurmMissing):
        return "does not answer (not found on this machine)"
    if error.code == 0:
        return f"answers what cannot be read ({error.why[:120]})"
    return f"does not answer ({(error.message or str(error))[:120]})"
