"""Runs a sweep's trials on this machine, side by side if it has room, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.dotted_keys import at
from launcher.engines import ENGINES
from launcher.findings import LauncherError
from launcher.job import ports
from launcher.local import evaluation_queue, process
from launcher.local.capacity import Need, check, slots_for
from launcher.local.controller import BUSY
from launcher.local.rank import TRAIN, RunRank
from launcher.local.stop_signals import stop_signals
from launcher.machine import Machine, look
from launcher.status.local_states import died, ended
from launcher.status.slurm_states import finished
from launcher.status.trial_state import TrialState
from launcher.sweep import kept_code, logs
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.trial_config.validate import load

_POLL_S = 0.1
# The last trial waits for the ones before it, to get all cores, if they take less than this share of a trial's time:
# two threads were measured to be about 1.5 times as fast as one, which saves a third of the trial's time.
_WORTH_WAITING = 0.25

OnUpdate = Callable[[list[TrialState]], None]


class RunStopped(LauncherError):
    """The launcher was asked to stop (Ctrl-C, SIGTERM, SIGHUP) and has stopped: no rank is running any more."""

    def __init__(self, signum: int, states: list[TrialState]) -> None:
        self.signum = signum
        self.states = states
        self.exit_code = 128 + signum
        stopped = [state.trial.name for state in states if state.state == "CANCELLED" and state.log is not None]
        unstarted = [state.trial.name for state in states if state.state == "CANCELLED" and state.log is None]
        parts = [f"stopped by {signal.Signals(signum).name}"]
        parts += [f"ended while running: trial {', '.join(stopped)}"] if stopped else []
        parts += [f"never started: trial {', '.join(unstarted)}"] if unstarted else []
        super().__init__("; ".join([*parts, "no process is left running"]))


def run(
    sweep: Sweep,
    trials: Sequence[Trial] | None = None,
    *,
    slots: int | None = None,
    on_update: OnUpdate | None = None,
    grace_s: float = 5.0,
    machine: Machine | None = None,
    entry: str = TRAIN,
    code: int | None = None,
    evaluation: str = evaluation_queue.MODULE,
) -> list[TrialState]:
    """Run `trials` (default: all) of a sweep and wait for them. A trial that has its result is not run again.

    slots: at most so many trials at once; by default cluster.trials_at_once, or what cores, memory and GPUs allow.
    on_update: called about ten times a second, and at the end, with the state of every trial, without its progress.
    grace_s: seconds between asking ranks to end and killing them.
    entry: the function that each rank calls with the trial's folder, as module:function.
    evaluation: the module that evaluates trials that are done, run with the sweep's folder and their numbers.
    code: the copy of the launcher's code in the sweep's folder that ranks run; by default each trial's own.

    Returns the last states in the order of `trials`. Raises RunStopped after a signal. Whatever it raises, and even if
    this process is killed, no process that it started is left.
    """
    chosen = sweep.trials if trials is None else list(trials)
    job = f"{socket.gethostname()}:{os.getpid()}"
    codes = {trial.number: sweep.code_of(trial.number) if code is None else code for trial in chosen}
    paths = {number: kept_code.pythonpath(sweep.folder, copy) for number, copy in codes.items() if copy is not None}
    runner = _Runner(chosen, job, slots, on_update, grace_s, machine or look(), entry, paths, evaluation)
    for copy in dict.fromkeys(codes[trial.number] for trial in runner.waiting):
        numbers = [trial.number for trial in runner.waiting if codes[trial.number] == copy]
        sweep.record_job("local", job, numbers, code=copy or 0)
    with stop_signals() as caught:
        try:
            while runner.busy and not caught:
                runner.turn()
                time.sleep(_POLL_S)
            if caught:
                runner.stop(caught, update=caught[0] != signal.SIGHUP)  # after a hangup the terminal is gone
        finally:
            runner.stop(caught, update=False)
    if caught:
        raise RunStopped(caught[0], runner.in_order())
    runner.update()
    return runner.in_order()


@dataclass
class _Running:
    trial: Trial
    need: Need
    job_id: str
    controller: subprocess.Popen[bytes]
    port_lock: socket.socket
    gpus: tuple[str, ...]
    started: float = field(default_factory=time.monotonic)

    @property
    def logs(self) -> Path:
        return self.trial.folder / "log"


def _is_evaluated(trial: Trial) -> bool:
    """Whether the policy answers prompts once it is trained. The config of another engine may have other keys."""
    return at(trial.config(), "engine") in ENGINES and load(trial.folder).evaluated_after_training


class _Runner:
    """The trials of one `run`: waiting ones, running ones, and the states of all."""

    def __init__(
        self,
        trials: list[Trial],
        job: str,
        slots: int | None,
        on_update: OnUpdate | None,
        grace_s: float,
        machine: Machine,
        entry: str,
        code: Mapping[int, str],
        evaluation: str = evaluation_queue.MODULE,
    ) -> None:
        self.trials, self.job, self.slots, self.on_update = trials, job, slots, on_update
        self.grace_s, self.machine, self.entry, self.code = grace_s, machine, entry, code
        self.evaluations = evaluation_queue.Queue(machine, evaluation, grace_s)
        self.running: list[_Running] = []
        self.waiting: list[Trial] = []
        self.states: dict[int, TrialState] = {}
        self.durations: list[float] = []
        for trial in trials:
            waiting = TrialState(trial=trial, state="WAITING", job=job)
            done = finished(waiting)
            self.states[trial.number] = done or waiting
            self.waiting += [] if done else [trial]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self.evaluations.busy)

    def in_order(self) -> list[TrialState]:
        return [self.states[trial.number] for trial in self.trials]

    def change(self, trial: Trial, **changes: Any) -> None:
        self.states[trial.number] = replace(self.states[trial.number], **changes)

    def update(self) -> None:
        if self.on_update:
            self.on_update(self.in_order())

    def turn(self) -> None:
        """Record trials that have ended, start trials if there is room, report."""
        self.reap()
        while self.waiting and self.start(self.waiting[0]):
            self.waiting.pop(0)
        if not self.waiting:
            self.evaluate()
        self.update()

    def evaluate(self) -> None:
        """Start the evaluation of done trials if there is room beside training, and record finished evaluations."""
        for trial, error in self.evaluations.ended().items():
            known = "; ".join(filter(None, (self.states[trial.number].error, error)))
            self.change(trial, evaluating=False, error=known)
        for trial in self.evaluations.start([gpu for other in self.running for gpu in other.gpus], bool(self.running)):
            self.change(trial, evaluating=True)

    def start(self, trial: Trial) -> bool:
        """Start a trial if there is room. Returns True if the trial no longer waits."""
        config = trial.config()
        need = Need.of(config)
        problems = check(config, self.machine)
        if problems:
            self.change(trial, state="FAILED", reason="; ".join(map(str, problems)))
            return True
        slots = self.slots or at(config, "cluster.trials_at_once") or slots_for(need, self.machine)
        if len(self.running) >= slots or self._better_wait(need, slots):
            return False
        threads = self._threads(need, slots, len(self.running))
        gpus = self._gpus(need)
        port, lock = ports.claim()
        code = self.code.get(trial.number, "")
        env = process.environment(threads=threads, gpus=gpus, grace_s=self.grace_s, code=code)
        task = RunRank(str(trial.folder), port, self.entry)
        job_id, controller = process.start(task, trial.folder / "log", need.ranks, env)
        self.running.append(_Running(trial, need, job_id, controller, lock, gpus or ()))
        self.change(trial, state="RUNNING", log=logs.log_of(trial.folder / "log", job_id, 0))
        return True

    def _threads(self, need: Need, slots: int, running: int) -> int:
        """Threads per rank if the trial starts beside `running` others, and the waiting ones start as well."""
        side_by_side = min(slots, running + len(self.waiting))
        return max(1, self.machine.cores // (side_by_side * need.ranks))

    def _better_wait(self, need: Need, slots: int) -> bool:
        """Whether the last trials are done sooner if they wait for the cores of the trials before them."""
        if not self.running or not self.durations or len(self.waiting) >= slots:
            return False
        if self._threads(need, slots, len(self.running)) >= self._threads(need, slots, 0):
            return False
        left = [other.trial.progress().eta for other in self.running]
        known = [eta for eta in left if eta is not None]
        return len(known) == len(left) and max(known) < _WORTH_WAITING * max(self.durations)

    def _gpus(self, need: Need) -> tuple[str, ...] | None:
        """The GPUs that the fewest trials use; () for the CPU; None (leave it to CUDA) if none were found."""
        if not self.machine.gpus:
            return None
        if not need.on_gpu(self.machine):
            return ()
        use = Counter(gpu for other in self.running for gpu in other.gpus)
        return tuple(sorted(self.machine.gpus, key=lambda gpu: use[gpu])[: need.ranks])

    def reap(self, signum: int | None = None) -> None:
        """Record the trials that have ended; `signum` is the reason, if they were stopped by a signal."""
        for entry in [entry for entry in self.running if entry.controller.poll() is not None]:
            left = process.kill_group(entry.controller.pid)  # processes that a rank has started and left running
            self.running.remove(entry)
            entry.port_lock.close()
            state = self._state_at_end(entry, signum)
            if left:
                state = replace(state, error=f"{state.error} (still there after SIGKILL: {left})".strip())
            self.states[entry.trial.number] = state
            process.tidy(entry.logs, entry.job_id)
            if state.state == "DONE" and signum is None and _is_evaluated(entry.trial):
                self.evaluations.add(entry.trial)

    def _state_at_end(self, entry: _Running, signum: int | None) -> TrialState:
        """The state of a trial whose controller has ended."""
        seconds = time.monotonic() - entry.started
        before = replace(self.states[entry.trial.number], elapsed=seconds)
        start = logs.StartLogs(entry.job_id, None, 0)
        start.logs.update({rank: logs.log_of(entry.logs, entry.job_id, rank) for rank in range(entry.need.ranks)})
        if entry.trial.result() is not None:
            self.durations.append(seconds)
            failures = logs.local_failures(start)
            error = f"after its result was written: {failures[0].error or died(failures[0].code)}" if failures else ""
            return replace(before, state="DONE", error=error)
        if signum is not None:
            return replace(before, state="CANCELLED", reason=f"stopped by {signal.Signals(signum).name}")
        code = entry.controller.returncode
        if code == BUSY:
            return replace(before, state="FAILED", reason="another launcher runs it")
        if start.exits() is None:
            last = (logs.tail(start.logs[0]) or ["the log is empty"])[-1]
            return replace(before, state="FAILED", reason=f"its controller ended: {died(code)}", error=last)
        return ended(before, start)

    def stop(self, caught: list[int], update: bool) -> None:
        """End all running trials and wait until they are gone: TERM, after the grace time or a second signal KILL."""
        signum = caught[0] if caught else signal.SIGTERM
        for entry in self.running:
            entry.controller.send_signal(signal.SIGTERM)  # the controller passes it on to the ranks
            self.change(entry.trial, state="STOPPING")
        deadline = time.monotonic() + self.grace_s
        while self.running:
            if time.monotonic() >= deadline or len(caught) > 1:
                for entry in self.running:
                    process.kill_group(entry.controller.pid)
            self.reap(signum)
            if update:
                self.update()
            time.sleep(_POLL_S / 2)
        for trial in self.evaluations.stop():
            self.change(trial, evaluating=False, error="its evaluation was stopped")
        for trial in self.waiting:
            self.change(trial, state="CANCELLED", reason="not started")
        self.waiting.clear()
