"""What each trial of a sweep is doing, by Slurm's word joined with its folder. Read at every call, kept nowhere.

A trial is DONE only if its result.json is there. `ask` puts one squeue, and at most one sacct, for the whole sweep;
`states` joins the answers with the folders. A sweep that ran here is read from its folders alone (`local_states`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from launcher.slurm import reasons
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.status.answers import Answers, ask
from launcher.sweep import logs
from launcher.sweep import starts as history
from launcher.sweep.elements import Element, elements
from launcher.sweep.folder import Sweep, Trial
from launcher.sweep.metrics import Progress, read_progress

Word = Literal["WAITING", "RUNNING", "STOPPING", "DONE", "FAILED", "CANCELLED", "UNSUBMITTED", "UNKNOWN"]
#: In the order in which counts are shown.
WORDS: tuple[Word, ...] = (
    "RUNNING", "STOPPING", "WAITING", "DONE", "FAILED", "CANCELLED", "UNSUBMITTED", "UNKNOWN",
)  # fmt: skip
LIVE = frozenset({"WAITING", "RUNNING", "STOPPING", "UNKNOWN"})
"""What may still become done by itself; UNKNOWN may."""
ENDED_BADLY = frozenset({"FAILED", "CANCELLED", "UNSUBMITTED"})
_LARGE = 100  # trials from which on less is read of each one's metrics
_SHORT = 4096  # bytes, some eight steps
_MOST_ERRORS = 50  # failed trials whose logs are searched in one look


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """One trial, now."""

    trial: Trial
    state: Word
    reason: str = ""
    """Why it waits or how it ended, for people; "" where there is nothing to say."""
    error: str = ""
    """The first failed rank's error, in one line."""
    rank: int | None = None
    """The rank that failed first, where that is known."""
    slurm: str = ""
    """Slurm's own word, such as TIMEOUT."""
    slurm_reason: str = ""
    """Slurm's own reason, such as JobArrayTaskLimit."""
    exit_code: str = ""
    """As sacct writes it, `3:0` (code:signal), with the steps' where that differs; "" where Slurm told none."""
    job: str = ""
    """`69_2` for scancel, `host:pid` of a local launcher."""
    nodes: str = ""
    node_count: int | None = None
    elapsed: float | None = None
    """Seconds of its last start; of a done trial, as its result says."""
    limit: float | None = None
    """Seconds; inf: none."""
    restarts: int = 0
    """How often it was started again: requeues and retries."""
    expected: float | None = None
    """When Slurm expects it to start."""
    progress: Progress = field(default_factory=Progress)
    log: Path | None = None
    """The failed rank's, else rank 0's, of its last start."""
    starts: tuple[history.Start, ...] = ()
    """On Slurm: what happened to each of its starts, oldest first."""

    @property
    def beat(self) -> float | None:
        """Seconds since its last sign of life."""
        return self.progress.silent


@dataclass(frozen=True)
class Look:
    """All trials of a sweep at one moment."""

    sweep: Sweep
    trials: list[TrialState]
    answers: Answers

    @property
    def counts(self) -> dict[Word, int]:
        found = Counter(state.state for state in self.trials)
        return {word: found[word] for word in WORDS if found[word]}

    @property
    def exit_code(self) -> int:
        """0 all done; 3 some may still become done; 1 all have ended, some without a result."""
        words = set(self.counts)
        return 3 if words & LIVE else 1 if words & ENDED_BADLY else 0


def look(sweep: Sweep) -> Look:
    """Ask Slurm once, and read the folders."""
    return join(sweep, ask(sweep))


# -- joining -----------------------------------------------------------------------------------------------------------


def join(sweep: Sweep, answers: Answers, errors: int = _MOST_ERRORS) -> Look:
    """The answers and the folders together. `errors`: search at most so many failed trials' logs for why."""
    from launcher.status import local_states

    parts = elements(answers.jobs(sweep))
    names = Counter(part.name for each in parts.values() for part in each)
    found = []
    trials = sweep.trials
    short = len(trials) > _LARGE
    for trial in trials:
        state = _of_slurm(trial, parts.get(trial.number, []), answers)
        if state is not None and state.state in LIVE and names[state.job] > 1:
            state = _beside_others(state, parts[trial.number])
        if state is None:
            state = local_states.state(trial, [p for p in parts[trial.number] if p.job["id"]][-1].job)
        if state.state in ENDED_BADLY or (state.state in LIVE and state.state != "WAITING"):
            # It may have finished since Slurm was asked. Listing the folder makes NFS look anew.
            state = _finished(state) or state
        found.append(_with_folder(state, short))
    left = errors
    for place, state in enumerate(found):
        if state.state in ENDED_BADLY and state.log and left:
            found[place] = _with_error(sweep, state)
            left -= 1
    return Look(sweep, found, answers)


def _progress(trial: Trial, short: bool) -> Progress:
    """`short`: of a large sweep, by the last few lines, unless those say nothing of a step."""
    path = trial.folder / "metrics.jsonl"
    found = read_progress(path, tail_size=_SHORT) if short else None
    return found if found and found.step else read_progress(path)


def _of_slurm(trial: Trial, parts: Sequence[Element], answers: Answers) -> TrialState | None:
    """By result.json, squeue and sacct, in this order; None where the trial's last start was on this machine."""
    done = _finished(TrialState(trial=trial, state="UNSUBMITTED", job=_last_name(parts)))
    if done:
        return _timed(done, parts, answers)
    if not parts:
        return TrialState(trial=trial, state="UNSUBMITTED", reason="was never submitted")
    for part in reversed(parts):  # an earlier array's element may have been requeued by hand
        if answers.queue and part.name in answers.queue and not answers.queue[part.name].state.ended:
            return _live(trial, answers.queue[part.name])
    taken = [part for part in parts if part.job["id"]]
    if not taken:
        why = "sbatch gave it no id: it refused, or was stopped too early"
        return TrialState(trial=trial, state="UNSUBMITTED", reason=why)
    last = taken[-1]  # of a retry that sbatch did not take, nothing is left but its record
    if last.job["kind"] != "slurm":
        return None
    name = last.name
    account = (answers.account or {}).get(name)
    if answers.queue is None:
        return _without_queue(trial, name, account)
    gone = answers.queue.get(name)
    if account is not None and (account.state.ended or gone is None):
        return _ended(trial, name, account)
    if gone is not None:
        return _ended(trial, name, gone)
    return _forgotten(trial, last, answers)


def _finished(state: TrialState) -> TrialState | None:
    if "result.json" not in os.listdir(state.trial.folder):
        return None
    result = state.trial.result()
    if result is None:
        return None
    seconds = result.get("seconds")
    return replace(
        state, state="DONE", reason="", elapsed=float(seconds) if isinstance(seconds, (int, float)) else None
    )


def _timed(done: TrialState, parts: Sequence[Element], answers: Answers) -> TrialState:
    """A done trial, with where it ran, if Slurm happened to say."""
    row: AccountRow | QueueRow | None = None
    if parts:
        row = (answers.account or {}).get(parts[-1].name) or (answers.queue or {}).get(parts[-1].name)
    if row is None:
        return done
    return replace(done, slurm=row.state.word, nodes=row.nodes, node_count=row.node_count, limit=row.limit)


def _last_name(parts: Sequence[Element]) -> str:
    if not parts:
        return ""
    return parts[-1].name if parts[-1].in_slurm else str(parts[-1].job["id"])


def _live(trial: Trial, row: QueueRow) -> TrialState:
    waits = row.state.phase == "waiting"
    stopping = row.state.word == "COMPLETING"
    said = reasons.waiting(row) if waits else "" if row.state.word in ("RUNNING", "COMPLETING") else row.state.meaning
    if waits and row.restarts and row.reason in ("BeginTime", ""):
        said = "was requeued (preempted, its node failed, or by hand) and waits to start again"
    return TrialState(
        trial=trial,
        state="WAITING" if waits else "STOPPING" if stopping else "RUNNING",
        reason=said,
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


def _beside_others(state: TrialState, parts: Sequence[Element]) -> TrialState:
    """Of trials that share a job each has an end of its own, which their job outlives. Of a retry's job the ends of
    starts before it say nothing.
    """
    chain = _chain(parts, state.job)
    known = [start for start in history.read(state.trial.folder) if start.chain == chain]
    if not known or not known[-1].kind:
        return state
    last = known[-1]
    if last.gave_up:
        return replace(state, state="FAILED", reason=last.then)
    if state.state == "RUNNING":
        return replace(state, state="WAITING")
    return state


def _chain(parts: Sequence[Element], name: str) -> str:
    """The element that was submitted, of which the element `name` is a continuation, if it is not that one itself."""
    chain = ""
    for part in parts:
        chain = chain if "first" in part.job else part.name
        if part.name == name:
            break
    return chain


def _without_queue(trial: Trial, name: str, account: AccountRow | None) -> TrialState:
    """squeue is away: what the accounting said last, which for a trial that lives may be old."""
    if account is None:
        return TrialState(trial=trial, state="UNKNOWN", reason="Slurm does not say how it is", job=name)
    if account.state.ended:
        return _ended(trial, name, account)
    waits = account.state.phase == "waiting"
    return TrialState(
        trial=trial,
        state="WAITING" if waits else "RUNNING",
        reason="by the accounting; squeue does not answer",
        slurm=account.state.word,
        slurm_reason=account.reason,
        job=name,
        nodes=account.nodes,
        node_count=account.node_count,
        elapsed=None if waits else account.elapsed,
        limit=account.limit,
    )


def _ended(trial: Trial, name: str, row: AccountRow | QueueRow) -> TrialState:
    """It has ended, without a result, whatever Slurm calls it."""
    said, word = reasons.ended(row), row.state.word
    if not row.state.ended:  # the accounting missed its end: it was away when the job ended
        said = f"is no longer in the queue; how it ended is not known (the accounting still says {word})"
    return TrialState(
        trial=trial,
        state="CANCELLED" if word == "CANCELLED" else "FAILED",
        reason=said,
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
    """squeue has answered and does not know it, so it neither waits nor runs; nor does sacct know it, or it is away."""
    if answers.account is None:
        why = "has ended without a result; how is not known while the accounting does not answer"
        return TrialState(trial=trial, state="FAILED", reason=why, job=part.name)
    if not _left_logs_since(trial, part) and not _batch_file(trial.folder.parent, part.name).exists():
        why = "cancelled before it started (Slurm keeps no record of that)"
        return TrialState(trial=trial, state="CANCELLED", reason=why, job=part.name)
    why = f"has ended without a result; Slurm no longer knows job {part.name}"
    return TrialState(trial=trial, state="FAILED", reason=why, job=part.name)


def _left_logs_since(trial: Trial, part: Element) -> bool:
    from datetime import datetime

    since = datetime.fromisoformat(part.job["submitted"]).timestamp()
    return any(log.stat().st_mtime >= since for start in logs.by_start(trial.folder) for log in start.logs.values())


def _with_folder(state: TrialState, short: bool) -> TrialState:
    """With what the trial's folder says: how far it is, how often it started, its log."""
    starts = logs.by_start(state.trial.folder)
    if not starts:
        return state
    last = starts[-1]
    known = history.read(state.trial.folder)
    return replace(
        state,
        reason=_by_history(state, known),
        restarts=max(state.restarts, len(starts) - 1),
        progress=_progress(state.trial, short),
        log=state.log or last.logs[min(last.logs)],
        starts=tuple(known),
    )


def _by_history(state: TrialState, starts: Sequence[history.Start]) -> str:
    """The state's reason, with what has happened to the trial before."""
    ended = [start for start in starts if start.kind]
    if not ended:
        return state.reason
    last = ended[-1]
    if state.state == "WAITING" and last is starts[-1]:
        hold = f"; {state.reason}" if state.slurm_reason not in ("", "None", "BeginTime") else ""
        held = ", held by Slurm for some minutes" if state.slurm_reason == "BeginTime" else ""
        beside = ", when the trials beside it have ended" if state.slurm == "RUNNING" else ""
        return f"{last.why}; goes on from step {last.last_step}{beside}{held}{hold}"
    if state.state == "RUNNING":
        return state.reason or f"start {len(starts)}, from step {starts[-1].first_step}; before: {last.why}"
    if state.state == "FAILED" and last is starts[-1] and last.gave_up:
        return last.then if len([start for start in starts if start.chain == last.chain]) > 1 else last.why
    return state.reason


def _with_error(sweep: Sweep, state: TrialState) -> TrialState:
    """With the line that says why it failed, from its ranks' logs or what the batch script printed."""
    if state.state != "FAILED" or state.error:
        return state
    starts = logs.by_start(state.trial.folder)
    limit = bool(state.starts) and state.starts[-1].kind == "timeout"  # then its script has ended the ranks
    own_end = limit or state.slurm in ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "COMPLETED")
    # srun's complaints about ranks that Slurm itself ended say nothing
    batch = [] if own_end else batch_log(sweep, state)
    found = logs.failure(starts[-1], batch) if starts else None
    memory = logs.said_out_of_memory(batch)
    if not own_end:
        reported = logs.srun_reported(batch)
        if state.reason.startswith(history.GAVE_UP):
            pass  # says how often it was tried, and why not again
        elif memory:
            state = replace(state, reason="ran out of memory")
        elif reported:
            # more to the point than Slurm's exit code, which is that of the ranks that srun ended after the first
            state = replace(state, reason=f"rank {reported[0]}: {reported[1]}", rank=reported[0])
            if reported[1].startswith("User defined signal 2"):
                state = replace(state, reason="ended by USR2, Slurm's warning before the time limit")
    if found and memory:
        return replace(state, error=memory, log=found.log, rank=found.rank)
    if found:
        return replace(state, error=found.error, log=found.log, rank=found.rank)
    return replace(state, error=memory)


def batch_log(sweep: Sweep, state: TrialState) -> list[str]:
    """The last lines of what its element's batch script printed: srun's and Slurm's own complaints.

    Beside other trials, what its own srun printed: the batch script tells of the others as well.
    """
    starts = history.read(state.trial.folder)
    own = logs.srun_log(state.trial.folder, starts[-1].name) if starts else None
    if own and own.exists():
        return logs.tail(own, 16384)
    return logs.tail(_batch_file(sweep.folder, state.job), 16384) if "_" in state.job else []


def _batch_file(sweep: Path, job: str) -> Path:
    return sweep / "slurm" / f"{job}.out"
