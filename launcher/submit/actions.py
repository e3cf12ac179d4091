"""Stopping trials and running them again; what `cancel`, `retry` and the keys of `watch` do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.slurm import client
from launcher.slurm.rows import QueueRow, array_spec
from launcher.status import local_states
from launcher.status.states import LIVE, Look, TrialState
from launcher.sweep.elements import elements
from launcher.sweep.folder import Sweep, Trial

_SETTLED_S = 3.0  # see slurm.start_now
_UNSURE = "Slurm does not say whether it runs"


@dataclass(frozen=True)
class Plan:
    """What is to be done to which trials, and which are left alone, and why."""

    chosen: list[TrialState] = field(default_factory=list)
    left: list[tuple[TrialState, str]] = field(default_factory=list)


# -- cancel ------------------------------------------------------------------------------------------------------------


def to_cancel(look: Look, wanted: Sequence[Trial]) -> Plan:
    """Of the wanted trials (none: all) those that wait or run, or may."""
    plan = Plan()
    numbers = {trial.number for trial in wanted or look.sweep.trials}
    for state in look.trials:
        if state.trial.number not in numbers:
            continue
        if state.state in LIVE:
            plan.chosen.append(state)
        elif wanted:
            plan.left.append((state, f"is {state.state.lower()}"))
    return plan


def cancel(look: Look, chosen: Sequence[TrialState]) -> list[str]:
    """Stop trials, in one scancel. Returns a line for each thing that was done. Raises SlurmError and Refused."""
    slurms = [state for state in chosen if _is_element(state)]
    _refuse_some_of_a_job(look, slurms)
    here = [state for state in chosen if not _is_element(state)]
    done = []
    if slurms:
        names = _arrays(list(dict.fromkeys(state.job for state in slurms)))
        client.scancel(names)
        done.append(f"scancel {' '.join(names)}")
    if here:
        done += _cancel_here(look, here)
    return done


def _refuse_some_of_a_job(look: Look, chosen: Sequence[TrialState]) -> None:
    """Trials that share a job end together."""
    jobs, numbers = {state.job for state in chosen}, {state.trial.number for state in chosen}
    beside = [
        s.trial.number for s in look.trials if s.job in jobs and s.state in LIVE and s.trial.number not in numbers
    ]
    if beside:
        why = f"on the same node, in the same job, {_trials(beside)} would end with it"
        raise Refused([Finding("TRIAL", array_spec(sorted(numbers)), why, "name those as well, or let it run")])


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'s' * (len(numbers) > 1)} {array_spec(sorted(numbers))}"


def _is_element(state: TrialState) -> bool:
    array, _, index = state.job.partition("_")
    return array.isdigit() and index.isdigit()


def _arrays(names: Sequence[str]) -> list[str]:
    """`69_0`, `69_1`, `70_3` as scancel takes them in few words: `69_[0-1]`, `70_3`."""
    by_array: dict[str, list[int]] = {}
    for name in names:
        array, _, index = name.partition("_")
        by_array.setdefault(array, []).append(int(index))
    return [
        f"{array}_{indices[0]}" if len(indices) == 1 else f"{array}_[{array_spec(indices)}]"
        for array, indices in by_array.items()
    ]


def _cancel_here(look: Look, chosen: Sequence[TrialState]) -> list[str]:
    """Of a local sweep: all of it by its launcher, a running trial by its controller."""
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
            why = "its launcher on this machine would start it all the same"
            spec = array_spec([state.trial.number for state in waiting])
            raise Refused([Finding("TRIAL", spec, why, "cancel it when it runs, or the whole sweep now")])
        for state in chosen:
            if state.job == job:
                done.append(_end_controller(state))
    return done


def _launcher(sweep: Sweep, job: str) -> int:
    import socket
    from datetime import datetime

    host, _, pid = job.rpartition(":")
    if host != socket.gethostname():
        raise Refused([Finding("SWEEP", str(sweep.folder), f"it runs on {host}", f"cancel it on {host}")])
    record = next(record for record in reversed(sweep.jobs) if record["id"] == job)
    if not local_states.alive(int(pid), datetime.fromisoformat(record["submitted"]).timestamp()):
        raise Refused([Finding("SWEEP", str(sweep.folder), "its launcher has ended already", "see status")])
    return int(pid)


def _end_controller(state: TrialState) -> str:
    pid = local_states.holder(state.trial.folder / "log" / "lock")
    command = Path(f"/proc/{pid}/cmdline")
    if pid is None or not command.exists() or b"launcher.local.controller" not in command.read_bytes():
        why = "the process that runs it cannot be found"
        raise Refused([Finding("TRIAL", str(state.trial.number), why, "cancel the whole sweep")])
    os.kill(pid, signal.SIGTERM)  # it passes it on to the ranks
    return f"asked trial {state.trial.name} (process {pid}) to stop"


# -- requeued trials ---------------------------------------------------------------------------------------------------

_held: dict[str, float] = {}  # requeued elements that Slurm holds, and when they were first seen so


def hasten(rows: Iterable[QueueRow]) -> list[str]:
    """Let those that were requeued start as soon as there is room, without the two minutes that Slurm holds them for.

    To be called again and again. Only somebody outside of the job can do it: the hold begins when the job has ended,
    and its script with it. Returns their names. Raises SlurmError.
    """
    now = time.monotonic()
    held = {row.name for row in rows if row.restarts and row.reason == "BeginTime" and row.state.word == "PENDING"}
    for name in set(_held) - held:
        del _held[name]
    ready = sorted(name for name in held if now - _held.setdefault(name, now) >= _SETTLED_S)
    client.start_now(ready)
    return ready


# -- retry -------------------------------------------------------------------------------------------------------------


def to_retry(look: Look, wanted: Sequence[Trial], only_failed: bool) -> Plan:
    """Of the wanted trials (none: all) those that ended without a result; `only_failed`: not the cancelled ones."""
    plan = Plan()
    numbers = {trial.number for trial in wanted or look.sweep.trials}
    for state in look.trials:
        if state.trial.number not in numbers:
            continue
        if state.state == "UNKNOWN":
            plan.left.append((state, _UNSURE))
        elif state.state in LIVE or state.state == "DONE":
            if wanted:
                plan.left.append((state, f"is {state.state.lower()}"))
        elif only_failed and state.state == "CANCELLED":
            plan.left.append((state, "was cancelled, and --failed asks for what failed"))
        else:
            plan.chosen.append(state)
    return plan


@contextlib.contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """One retry of a sweep at a time, so that two people do not submit the same trial twice. Raises Refused."""
    with (sweep.folder / ".retry.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            why = "somebody else is retrying trials of it at this moment"
            raise Refused([Finding("SWEEP", str(sweep.folder), why, "look again with status")]) from None
        yield


def of_local(sweep: Sweep, trial: Trial) -> bool:
    """Whether the trial was last started on this machine; if it never was, whether its config says so."""
    parts = elements(sweep.submitted()).get(trial.number)
    if parts:
        return bool(parts[-1].job["kind"] == "local")
    return str((trial.config().get("cluster") or {}).get("name")) == "local"


def submit_again(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    """One new array of these trials, which belongs to the same sweep. Returns its id (several only if the trials ask
    Slurm for different things). Training goes on from the last checkpoint in each trial's folder. Raises SlurmError.
    """
    from launcher.submit import to_slurm

    configs = {trial.number: trial.config() for trial in trials}
    most = client.cluster().max_array_size
    requests = list(to_slurm.arrays(sweep, trials, configs, most))
    to_slurm.submit(sweep, requests)
    return [job["id"] for job in Sweep.load(sweep.folder).submitted() if job["id"]][-len(requests) :]
