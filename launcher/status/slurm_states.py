"""The state of a trial that was submitted to Slurm, from its result, squeue, sacct, and its own starts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.slurm import reasons
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.status.answers import Answers
from launcher.status.trial_state import TrialState
from launcher.sweep import logs, result_file, starts
from launcher.sweep.array_elements import Element
from launcher.sweep.trial import Trial


def state(trial: Trial, parts: Sequence[Element], answers: Answers) -> TrialState | None:
    """The state by result.json, squeue and sacct, in this order; None if the trial's last start was on this machine.

    `parts`: the elements that were submitted for the trial, oldest first.
    """
    job = _last_name(parts)
    if trial.number in answers.done:
        done = TrialState(trial=trial, state="DONE", job=job, elapsed=answers.done[trial.number])
        return _with_row(done, parts, answers)
    since = finished(TrialState(trial=trial, state="UNSUBMITTED", job=job))  # since Slurm was asked
    if since:
        return _with_row(since, parts, answers)
    if not parts:
        return TrialState(trial=trial, state="UNSUBMITTED", reason="was never submitted")
    for part in reversed(parts):  # an earlier array's element may have been requeued by hand
        if answers.queue and part.name in answers.queue and not answers.queue[part.name].state.ended:
            return _live(trial, answers.queue[part.name])
    lost = parts[-1] if not parts[-1].job.id else None
    if lost and (answers.unclaimed or answers.queue is None or answers.on_other_cluster(lost)):
        return _lost(trial, lost, answers)
    taken = [part for part in parts if part.job.id]
    if not taken:
        why = "sbatch returned no job id: it refused the job, or was killed too early"
        return TrialState(trial=trial, state="UNSUBMITTED", reason=why)
    last = taken[-1]  # a later retry that sbatch refused has left nothing but its record
    if last.job.kind != "slurm":
        return None
    if answers.on_other_cluster(last):
        cluster = last.job.cluster
        why = f"{_whereabouts(last, answers)}; to see its state: squeue -M {cluster} -j {last.job.id}"
        return TrialState(trial=trial, state="UNKNOWN", reason=why, job=f"{last.name};{cluster}")
    if last.name in answers.reused:
        why = f"has ended without a result; Slurm has given the job id {last.name} to another job"
        return TrialState(trial=trial, state="FAILED", reason=why, job=last.name)
    account = (answers.account or {}).get(last.name)
    if answers.queue is None:
        return _without_queue(trial, last.name, account)
    ended_row = answers.queue.get(last.name)
    if account is not None and (account.state.ended or ended_row is None):
        return _ended(trial, last.name, account)
    if ended_row is not None:
        return _ended(trial, last.name, ended_row)
    return _forgotten(trial, last, answers)


def finished(state: TrialState) -> TrialState | None:
    """The state of a trial that has its result; None if it has none."""
    if not state.trial.has_result():
        return None
    result = state.trial.result()
    if result is None:
        return None
    return replace(state, state="DONE", reason="", elapsed=result_file.seconds(result))


def beside_others(state: TrialState, parts: Sequence[Element]) -> TrialState:
    """The state of a trial that shares its job with others: its own end counts, since the job goes on after it.

    How starts before a retry ended does not matter for the retry's job.
    """
    chain = _chain(parts, state.job)
    known = [start for start in starts.read(state.trial.folder) if start.chain == chain]
    if not known or not known[-1].kind:
        return state
    if known[-1].gave_up:
        return replace(state, state="FAILED", reason=known[-1].then)
    if state.state == "RUNNING":
        return replace(state, state="WAITING")
    return state


def batch_output(sweep: Path, job: str) -> Path:
    """The file with the output of an element's batch script."""
    return sweep / "slurm" / f"{job}.out"


def _with_row(done: TrialState, parts: Sequence[Element], answers: Answers) -> TrialState:
    """A done trial, with the nodes where it ran if Slurm's answers have them."""
    row: AccountRow | QueueRow | None = None
    if parts:
        row = (answers.account or {}).get(parts[-1].name) or (answers.queue or {}).get(parts[-1].name)
    if row is None:
        return done
    return replace(done, slurm=row.state.word, nodes=row.nodes, node_count=row.node_count, limit=row.limit)


def _last_name(parts: Sequence[Element]) -> str:
    if not parts:
        return ""
    return parts[-1].name if parts[-1].in_slurm else parts[-1].job.id


def _live(trial: Trial, row: QueueRow) -> TrialState:
    waits = row.state.phase == "waiting"
    stopping = row.state.word == "COMPLETING"
    reason = reasons.waiting(row) if waits else "" if row.state.word in ("RUNNING", "COMPLETING") else row.state.meaning
    if waits and row.restarts and row.reason in ("BeginTime", ""):
        reason = "was requeued (preempted, its node failed, or by hand) and waits to start again"
    return TrialState(
        trial=trial,
        state="WAITING" if waits else "STOPPING" if stopping else "RUNNING",
        reason=reason,
        slurm=row.state.word,
        slurm_reason=row.reason,
        job=row.name,
        nodes=row.nodes,
        node_count=row.node_count,
        elapsed=None if waits else row.elapsed,
        limit=row.limit,
        restarts=row.restarts,
        expected=row.started if waits else None,
    )


def _whereabouts(part: Element, answers: Answers) -> str:
    """That an element is on another cluster, as far as this machine knows its own."""
    where = f"is on the cluster {part.job.cluster}"
    return where if answers.cluster else f"{where}, which may not be this one"


def _lost(trial: Trial, part: Element, answers: Answers) -> TrialState:
    """sbatch returned no job id for the trial's last start, and Slurm here does not tell whether there is a job."""
    where = f" -M {part.job.cluster}" if answers.on_other_cluster(part) else ""
    name = shlex.quote(part.job.name)
    why = f"sbatch returned no job id; to see whether there is a job: squeue{where} --me --name={name}"
    return TrialState(trial=trial, state="UNKNOWN", reason=why)


def _chain(parts: Sequence[Element], name: str) -> str:
    """The submitted element at the start of the chain that the element `name` belongs to."""
    chain = ""
    for part in parts:
        chain = chain if part.job.first is not None else part.name
        if part.name == name:
            break
    return chain


def _without_queue(trial: Trial, name: str, account: AccountRow | None) -> TrialState:
    """squeue does not answer: use the accounting, which may be out of date for a running trial."""
    if account is None:
        return TrialState(trial=trial, state="UNKNOWN", reason="Slurm does not answer", job=name)
    if account.state.ended:
        return _ended(trial, name, account)
    waits = account.state.phase == "waiting"
    return TrialState(
        trial=trial,
        state="WAITING" if waits else "RUNNING",
        reason="according to the accounting; squeue does not answer",
        slurm=account.state.word,
        slurm_reason=account.reason,
        job=name,
        nodes=account.nodes,
        node_count=account.node_count,
        elapsed=None if waits else account.elapsed,
        limit=account.limit,
    )


def _ended(trial: Trial, name: str, row: AccountRow | QueueRow) -> TrialState:
    """The job has ended without a result, whatever Slurm calls its state."""
    reason, word = reasons.ended(row), row.state.word
    if not row.state.ended:  # the accounting missed its end: it was away when the job ended
        reason = f"is no longer in the queue; it is not known how it ended (the accounting still says {word})"
    return TrialState(
        trial=trial,
        state="CANCELLED" if word == "CANCELLED" else "FAILED",
        reason=reason,
        slurm=word,
        slurm_reason=row.reason,
        exit_code=reasons.codes(row) if isinstance(row, AccountRow) and row.state.ended else "",
        job=name,
        nodes=row.nodes,
        node_count=row.node_count,
        elapsed=row.elapsed if row.started else None,
        limit=row.limit,
        restarts=row.restarts if isinstance(row, QueueRow) else 0,
    )


def _forgotten(trial: Trial, part: Element, answers: Answers) -> TrialState:
    """squeue answers and does not list the job, so it does not wait or run. sacct does not know it, or is away."""
    if answers.account is None:
        why = "has ended without a result; the accounting, which knows how, does not answer"
        return TrialState(trial=trial, state="FAILED", reason=why, job=part.name)
    if not _left_logs_since(trial, part) and not batch_output(trial.folder.parent, part.name).exists():
        why = "cancelled before it started (Slurm keeps no record of that)"
        return TrialState(trial=trial, state="CANCELLED", reason=why, job=part.name)
    why = f"has ended without a result; Slurm no longer knows job {part.name}"
    return TrialState(trial=trial, state="FAILED", reason=why, job=part.name)


def _left_logs_since(trial: Trial, part: Element) -> bool:
    since = part.job.submitted.timestamp()
    return any(start.last_written >= since for start in logs.by_start(trial.folder))
