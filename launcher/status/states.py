"""The states of all trials of a sweep: Slurm's answers joined with the folders. Nothing is cached between calls.

`ask` runs one squeue, and at most one sacct, for the whole sweep; `join` joins the answers with the folders. The states
of trials that ran on this machine come from their folders only (`local_states`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from launcher.status import local_states, slurm_states
from launcher.status.answers import Answers, ask
from launcher.status.trial_state import ENDED_BADLY, LIVE, Look, TrialState
from launcher.sweep import evaluation, logs, starts
from launcher.sweep.array_elements import Element, elements, evaluations
from launcher.sweep.folder import Sweep
from launcher.sweep.metrics import HEAD, TrialProgress, read_progress
from launcher.sweep.starts import Start

_LARGE = 100  # with more trials, only the end of each trial's metrics is read
_SHORT = 4096  # bytes, about eight steps
_MOST_ERRORS = 50  # search the logs of at most so many failed trials
_BATCH_TAIL = 16384  # bytes


def look(sweep: Sweep) -> Look:
    """Ask Slurm once, and read the folders."""
    return join(sweep, ask(sweep))


def join(sweep: Sweep, answers: Answers, max_errors: int = _MOST_ERRORS) -> Look:
    """Join the answers with the folders. The logs of at most `max_errors` failed trials are searched for the error."""
    parts = elements(answers.jobs(sweep))
    evaluated = evaluations(answers.jobs(sweep))
    trials_of = Counter(part.name for of_trial in parts.values() for part in of_trial)
    trials = sweep.trials
    large = len(trials) > _LARGE
    states = []
    for trial in trials:
        submitted = parts.get(trial.number, [])
        state = slurm_states.state(trial, submitted, answers)
        if state is None:
            state = local_states.state(trial, [part for part in submitted if part.job.id][-1].job)
        elif state.state in LIVE and trials_of[state.job] > 1:
            state = slurm_states.beside_others(state, submitted)
        if state.state in ENDED_BADLY or state.state in ("RUNNING", "STOPPING", "UNKNOWN"):
            # It may have finished since Slurm was asked. Listing the folder refreshes NFS's cache.
            state = slurm_states.finished(state) or state
        states.append(_with_evaluation(_with_folder(state, large), evaluated.get(trial.number, []), answers))
    searched = 0
    for place, state in enumerate(states):
        if state.state in ENDED_BADLY and state.log and searched < max_errors:
            states[place] = _with_error(sweep, state)
            searched += 1
    return Look(sweep, states, answers)


def batch_log(sweep: Sweep, state: TrialState) -> list[str]:
    """The last lines that the trial's batch script printed: error messages of srun and Slurm.

    For a trial that shares its job with others, the output of its own srun: the batch script's is about all of them.
    """
    known = starts.read(state.trial.folder)
    own = logs.srun_log(state.trial.folder, known[-1].name) if known else None
    if own and own.exists():
        return logs.tail(own, _BATCH_TAIL)
    if "_" not in state.job:
        return []
    printed = logs.tail(slurm_states.batch_output(sweep.folder, state.job), _BATCH_TAIL)
    return logs.of_start(printed, known[-1].name) if known else printed


def _with_folder(state: TrialState, large: bool) -> TrialState:
    """Add what the trial's folder has: its progress, how often it started, its log."""
    if state.state in ENDED_BADLY and not state.trial.folder.is_dir():
        return replace(state, state="FAILED", reason="its folder was deleted")
    printed = logs.by_start(state.trial.folder)
    if not printed:
        return state
    last = printed[-1]
    known = starts.read(state.trial.folder)
    return replace(
        state,
        reason=_reason(state, known),
        restarts=max(state.restarts, len(printed) - 1),
        progress=_progress(state, large),
        log=state.log or last.logs[min(last.logs)],
        starts=tuple(known),
    )


def _with_evaluation(state: TrialState, parts: Sequence[Element], answers: Answers) -> TrialState:
    """With how far its evaluation is. `parts`: the elements that were submitted for it, oldest first."""
    there = evaluation.read(state.trial.folder)
    if parts and not there.complete and answers.on_other_cluster(parts[-1]):
        job, cluster = parts[-1].job.id, parts[-1].job.cluster
        words = f"evaluation on the cluster {cluster}; to see its state: squeue -M {cluster} -j {job}"
        return replace(state, evaluation=words, evaluation_job=f"{parts[-1].name};{cluster}")
    parts = [part for part in parts if not answers.on_other_cluster(part)]
    row = next((row for part in reversed(parts) if (row := (answers.queue or {}).get(part.name))), None)
    if there.complete or row is None or row.state.ended:
        ended = parts and state.state == "DONE" and answers.queue is not None and not there.error
        if ended and not there.complete:
            log = slurm_states.batch_output(state.trial.folder.parent, parts[-1].name)
            return replace(state, evaluation=f"evaluation ended early, log {log}")
        return replace(state, evaluation=there.text) if there.text else state
    waits = row.state.phase == "waiting"
    words = "evaluation waits" if waits else there.text or "evaluation starts"
    return replace(state, evaluation=words, evaluation_job=row.name)


def _progress(state: TrialState, large: bool) -> TrialProgress:
    """Read the progress; in a large sweep from the last lines of the metrics only, unless those have no step."""
    path = state.trial.folder / "metrics.jsonl"
    if not large:
        return read_progress(path)
    progress = read_progress(path, tail_size=_SHORT, head_size=0 if state.state == "DONE" else HEAD)
    return progress if progress.step and progress.max_steps else read_progress(path)


def _reason(state: TrialState, known: Sequence[Start]) -> str:
    """The state's reason, with what happened to the trial's earlier starts."""
    ended = [start for start in known if start.kind]
    if not ended:
        return state.reason
    last = ended[-1]
    if state.state == "WAITING" and last is known[-1]:
        hold = f"; {state.reason}" if state.slurm_reason not in ("", "None", "BeginTime") else ""
        held = ", held by Slurm for some minutes" if state.slurm_reason == "BeginTime" else ""
        beside = ", when the trials beside it have ended" if state.slurm == "RUNNING" else ""
        return f"{last.why}; goes on from step {last.last_step}{beside}{held}{hold}"
    if state.state == "RUNNING":
        return state.reason or f"start {len(known)}, from step {known[-1].first_step}; before: {last.why}"
    if state.state == "FAILED" and last is known[-1] and last.gave_up:
        return last.then if len([start for start in known if start.chain == last.chain]) > 1 else last.why
    return state.reason


def _with_error(sweep: Sweep, state: TrialState) -> TrialState:
    """Add the line with the error, from the ranks' logs or the batch script's output."""
    if state.state != "FAILED" or state.error:
        return state
    printed = logs.by_start(state.trial.folder)
    at_limit = bool(state.starts) and state.starts[-1].kind == "timeout"  # then the batch script ended the ranks
    if at_limit or state.slurm in ("TIMEOUT", "NODE_FAIL", "PREEMPTED", "COMPLETED"):
        # srun's messages about ranks that Slurm itself ended do not explain the failure
        failure = logs.failure(printed[-1]) if printed else None
        return replace(state, error=failure.error, log=failure.log, rank=failure.rank) if failure else state
    batch = batch_log(sweep, state)
    failure = logs.failure(printed[-1], batch) if printed else None
    memory = logs.out_of_memory_line(batch)
    reported = logs.srun_reported(batch)
    if state.reason.startswith(starts.GAVE_UP):
        pass  # the reason already gives the number of starts, and why there is no other
    elif memory:
        state = replace(state, reason="ran out of memory")
    elif reported:
        # Slurm reports the exit code of the ranks that srun ended after the first one had failed
        state = replace(state, reason=f"rank {reported.rank}: {reported.ending}", rank=reported.rank)
        if reported.ending.startswith("User defined signal 2"):
            state = replace(state, reason="ended by USR2, Slurm's warning before the time limit")
    if failure:
        return replace(state, error=memory or failure.error, log=failure.log, rank=failure.rank)
    return replace(state, error=memory)
