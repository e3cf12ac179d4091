"""Which trials can be stopped or run again, and stopping them: for `cancel`, `retry` and the keys of `watch`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launcher import whole_file
from launcher.findings import Finding, Refused
from launcher.slurm import client
from launcher.slurm.rows import array_spec
from launcher.status import local_states
from launcher.status.trial_state import LIVE, Look, TrialState
from launcher.sweep import evaluation
from launcher.sweep.array_elements import elements, evaluations
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

_UNSURE = "Slurm does not report whether it runs"


@dataclass(frozen=True)
class Selection:
    """The trials that a command acts on, and those that it skips, with the reasons."""

    chosen: list[TrialState] = field(default_factory=list)
    left: list[tuple[TrialState, str]] = field(default_factory=list)


# -- cancel ------------------------------------------------------------------------------------------------------------


def to_cancel(look: Look, wanted: Sequence[Trial]) -> Selection:
    """The wanted trials (none: all) that wait or run, or may, themselves or their evaluation."""
    selection = Selection()
    numbers = {trial.number for trial in wanted or look.sweep.trials}
    for state in look.trials:
        if state.trial.number not in numbers:
            continue
        if state.state in LIVE or state.evaluation_job:
            selection.chosen.append(state)
        elif wanted:
            selection.left.append((state, f"is {state.state.lower()}"))
    return selection


def cancel(look: Look, chosen: Sequence[TrialState]) -> list[str]:
    """Stop trials, with one scancel. Returns one line for each action. Raises SlurmError and Refused."""
    look.sweep.refuse_foreign("cancel")
    _refuse_out_of_reach(look, chosen)
    live = [state for state in chosen if state.state in LIVE]
    slurms = [state for state in live if _is_element(state)]
    _refuse_some_of_a_job(look, slurms)
    here = [state for state in live if not _is_element(state)]
    done = []
    evaluations = [state.evaluation_job for state in chosen if state.evaluation_job]
    if slurms or evaluations:
        names = _arrays(list(dict.fromkeys([*(state.job for state in slurms), *evaluations])))
        client.scancel(names)
        done.append(f"scancel {' '.join(names)}")
    if here:
        done += _cancel_here(look, here)
    return done


def _refuse_out_of_reach(look: Look, chosen: Sequence[TrialState]) -> None:
    """Refuse trials whose job (or that of their evaluation) is on another cluster, since its id is another job's here,
    and those whose job id is not known. Raises SlurmError if this cluster's name is needed and Slurm does not answer.
    """
    unsure = {state.job for state in chosen if state.state == "UNKNOWN"}  # squeue did not answer
    parts = elements(look.answers.jobs(look.sweep)).values() if unsure else ()
    recorded = {part.name: part.job.cluster for of_trial in parts for part in of_trial if part.name in unsure}
    here = client.cluster_name().lower() if any(recorded.values()) else ""
    for state in chosen:
        for what, job in (("its job", state.job), ("its evaluation", state.evaluation_job)):
            name, _, cluster = job.partition(";")
            cluster = cluster or recorded.get(name, "")
            if cluster.lower() not in ("", here):
                why = f"{what} {name} is on the cluster {cluster}"
                raise Refused([Finding("TRIAL", str(state.trial.number), why, f"scancel -M {cluster} {name}")])
        if state.state == "UNKNOWN" and not state.job:
            raise Refused([Finding("TRIAL", str(state.trial.number), state.reason, "scancel what that lists")])


def _refuse_some_of_a_job(look: Look, chosen: Sequence[TrialState]) -> None:
    """Refuse to end some trials of a job but not all: they would end together."""
    jobs, numbers = {state.job for state in chosen}, {state.trial.number for state in chosen}
    beside = [s.trial.number for s in look.trials if s.job in jobs and s.state in LIVE]
    beside = [number for number in beside if number not in numbers]
    if beside:
        why = f"shares its job with {_trials(beside)}, which would end too"
        raise Refused([Finding("TRIAL", array_spec(sorted(numbers)), why, "name these too, or let all of them run")])


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'s' * (len(numbers) > 1)} {array_spec(sorted(numbers))}"


def _is_element(state: TrialState) -> bool:
    array, _, index = state.job.partition("_")
    return array.isdigit() and index.isdigit()


def _arrays(names: Sequence[str]) -> list[str]:
    """`69_0`, `69_1`, `70_3` in the short form that scancel accepts: `69_[0-1]`, `70_3`."""
    by_array: dict[str, list[int]] = {}
    for name in names:
        array, _, index = name.partition("_")
        by_array.setdefault(array, []).append(int(index))
    return [
        f"{array}_{indices[0]}" if len(indices) == 1 else f"{array}_[{array_spec(indices)}]"
        for array, indices in by_array.items()
    ]


def _cancel_here(look: Look, chosen: Sequence[TrialState]) -> list[str]:
    """Stop trials of a local sweep: through their launcher if all are to stop, else through each one's controller."""
    numbers = {state.trial.number for state in chosen}
    done = []
    for job in sorted({state.job for state in chosen}):
        pid = _launcher(look.sweep, job)
        live = {state.trial.number for state in look.trials if state.state in LIVE and state.job == job}
        if live <= numbers:
            os.kill(pid, signal.SIGTERM)
            done.append(f"asked the launcher (process {pid}) to stop")
            continue
        waiting = [state for state in chosen if state.job == job and state.state != "RUNNING"]
        if waiting:
            why = "its launcher on this machine would still start it"
            spec = array_spec([state.trial.number for state in waiting])
            raise Refused([Finding("TRIAL", spec, why, "cancel it once it runs, or cancel the whole sweep now")])
        for state in chosen:
            if state.job == job:
                done.append(_end_controller(state))
    return done


def _launcher(sweep: Sweep, job: str) -> int:
    """The process id of the launcher that runs trials of a local sweep. Raises Refused if it cannot be stopped."""
    host, _, pid = job.rpartition(":")
    if host != socket.gethostname():
        raise Refused([Finding("SWEEP", str(sweep.folder), f"runs on {host}", f"cancel it on {host}")])
    record = next(record for record in reversed(sweep.jobs) if record.id == job)
    if not local_states.alive(int(pid), record.submitted.timestamp()):
        raise Refused([Finding("SWEEP", str(sweep.folder), "its launcher has ended already", "see status")])
    if not local_states.is_own(int(pid)):
        why = f"process {pid} is not a Python process of yours"
        raise Refused([Finding("SWEEP", str(sweep.folder), why, "see status")])
    return int(pid)


def _end_controller(state: TrialState) -> str:
    pid = local_states.holder(state.trial.folder / "log" / "lock")
    if pid is None or not local_states.is_own(pid, "launcher.local.controller"):
        why = "cannot find the process that runs it"
        raise Refused([Finding("TRIAL", str(state.trial.number), why, "cancel the whole sweep")])
    os.kill(pid, signal.SIGTERM)  # the controller passes it on to the ranks
    return f"asked trial {state.trial.name} (process {pid}) to stop"


# -- retry -------------------------------------------------------------------------------------------------------------


def to_retry(look: Look, wanted: Sequence[Trial], only_failed: bool) -> Selection:
    """The wanted trials (none: all) that ended without a result; `only_failed`: except cancelled ones."""
    selection = Selection()
    numbers = {trial.number for trial in wanted or look.sweep.trials}
    for state in look.trials:
        if state.trial.number not in numbers:
            continue
        if state.state == "UNKNOWN":
            selection.left.append((state, _UNSURE))
        elif state.state in LIVE or state.state == "DONE":
            if wanted:
                selection.left.append((state, f"is {state.state.lower()}"))
        elif not state.trial.folder.is_dir():
            selection.left.append((state, "has no folder any more"))
        elif only_failed and state.state == "CANCELLED":
            selection.left.append((state, "was cancelled, and --failed selects failed trials only"))
        else:
            selection.chosen.append(state)
    return selection


def to_evaluate(look: Look, wanted: Sequence[Trial]) -> list[Trial]:
    """The wanted trials (none: all) that are done, and whose evaluation was submitted and has ended without scores.

    An empty list if squeue does not answer: the evaluation may wait or run.
    """
    if look.answers.queue is None:
        return []
    numbers = {trial.number for trial in wanted or look.sweep.trials}
    submitted = evaluations(look.sweep.submitted())
    return [
        state.trial
        for state in look.trials
        if state.trial.number in numbers & submitted.keys()
        and state.state == "DONE"
        and not state.evaluation_job
        and not evaluation.read(state.trial.folder).complete
    ]


@contextlib.contextmanager
def one_retry(sweep: Sweep) -> Iterator[None]:
    """Allow one retry of a sweep at a time, so that no trial is submitted twice. Raises Refused."""
    sweep.refuse_foreign("retry")
    try:
        with whole_file.locked(sweep.folder / ".retry.lock", wait=False):
            yield
    except BlockingIOError:
        why = "another process is retrying its trials now"
        raise Refused([Finding("SWEEP", str(sweep.folder), why, "wait, then see status")]) from None


def of_local(sweep: Sweep, trial: Trial) -> bool:
    """Whether the trial was last started on this machine; if it never was, whether its config says so."""
    parts = elements(sweep.submitted()).get(trial.number)
    if parts:
        return parts[-1].job.kind == "local"
    return str((trial.config().get("cluster") or {}).get("name")) == "local"
