"""Runs a sweep's trials on this machine, side by side as far as it has room, and leaves nothing running behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import IO, Any

from launcher.findings import Finding, LauncherError
from launcher.job import ports
from launcher.local import ending, process
from launcher.local.rank import TRAIN, RunRank
from launcher.machine import Machine, look
from launcher.sweep.folder import Outcome, Sweep, Trial

MEMORY_GB_PER_RANK = 3.0
_POLL_S = 0.1
# A last trial waits for the ones before it, to have all cores, if that takes less than this share of a trial's time:
# two threads were measured to be some 1.5 times as fast as one, which saves a third of its time.
_WORTH_WAITING = 0.25

OnUpdate = Callable[[Mapping[int, Outcome]], None]


class Stopped(LauncherError):
    """The launcher was asked to stop (Ctrl-C, SIGTERM, SIGHUP), and has: no rank is left running."""

    def __init__(self, signum: int, outcomes: list[Outcome]) -> None:
        self.signum = signum
        self.outcomes = outcomes
        self.exit_code = 128 + signum
        stopped = [o.trial.name for o in outcomes if o.state == "CANCELLED" and o.log is not None]
        unstarted = [o.trial.name for o in outcomes if o.state == "CANCELLED" and o.log is None]
        parts = [f"stopped by {signal.Signals(signum).name}"]
        parts += [f"ended while running: trial {', '.join(stopped)}"] if stopped else []
        parts += [f"never started: trial {', '.join(unstarted)}"] if unstarted else []
        super().__init__("; ".join([*parts, "nothing is left running"]))


@dataclass(frozen=True)
class Need:
    """What one trial takes, by its config."""

    ranks: int
    memory_gb: float
    accelerator: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Need:
        trainer = config.get("trainer") or {}
        ranks = int(trainer.get("devices") or 1)
        memory = (config.get("cluster") or {}).get("memory_gb_per_rank") or MEMORY_GB_PER_RANK
        return cls(ranks, ranks * float(memory), str(trainer.get("accelerator") or "auto"))

    def on_gpu(self, machine: Machine) -> bool:
        return bool(machine.gpus) and self.accelerator != "cpu"


def check(config: Mapping[str, Any], machine: Machine) -> list[Finding]:
    """What makes a trial impossible on this machine."""
    need = Need.of(config)
    nodes = int((config.get("trainer") or {}).get("num_nodes") or 1)
    found = []
    if nodes > 1:
        why = "this machine is one node"
        found.append(Finding("trainer.num_nodes", str(nodes), why, "set it to 1, or choose a Slurm cluster"))
    if need.on_gpu(machine) and need.ranks > len(machine.gpus):
        why = f"this machine has {len(machine.gpus)} GPU{'s' if len(machine.gpus) > 1 else ''}"
        remedy = f"set it to at most {len(machine.gpus)}, or trainer.accelerator=cpu"
        found.append(Finding("trainer.devices", str(need.ranks), why, remedy))
    return found


def slots_for(need: Need, machine: Machine) -> int:
    """How many such trials the machine takes at once: a core a rank, its memory, its GPUs; at least one."""
    bounds = [machine.cores // need.ranks, int(machine.memory_gb // need.memory_gb)]
    if need.on_gpu(machine):
        bounds.append(len(machine.gpus) // need.ranks)
    return max(1, min(bounds))


def run(
    sweep: Sweep,
    trials: Sequence[Trial] | None = None,
    *,
    slots: int | None = None,
    on_update: OnUpdate | None = None,
    grace_s: float = 5.0,
    machine: Machine | None = None,
    entry: str = TRAIN,
) -> list[Outcome]:
    """Run `trials` (all, if not given) of a sweep, and wait for them. A trial that has its result is not run again.

    slots: at most so many trials at once; by default as many as cores, memory and GPUs allow.
    on_update: called some ten times a second, and in the end, with the outcome of every trial so far.
    grace_s: seconds between asking ranks to end and killing them.
    entry: what each rank calls with the trial's folder, as module:function.

    Returns the outcomes in the order of `trials`. Raises Stopped after a signal. Whatever it raises, no process it
    started is left; nor is one if this process is killed.
    """
    chosen = sweep.trials if trials is None else list(trials)
    runner = _Runner(chosen, slots, on_update, grace_s, machine or look(), entry)
    if runner.waiting:
        numbers = [trial.number for trial in runner.waiting]
        sweep.record_job("local", f"{socket.gethostname()}:{os.getpid()}", numbers)
    with _signals() as caught:
        try:
            while (runner.waiting or runner.running) and not caught:
                runner.turn()
                time.sleep(_POLL_S)
            if caught:
                runner.stop(caught, tell=caught[0] != signal.SIGHUP)  # after a hangup there is nobody to tell
        finally:
            runner.stop(caught, tell=False)
    if caught:
        raise Stopped(caught[0], runner.in_order())
    runner.tell()
    return runner.in_order()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that ask to stop, collected instead of acted upon. One that was being ignored (nohup, &) still is."""
    caught: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    before = {
        signum: signal.signal(signum, note)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN
    }
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@dataclass
class _Running:
    trial: Trial
    need: Need
    job_id: str
    controller: subprocess.Popen[bytes]
    port_lock: IO[str]
    gpus: tuple[str, ...]
    started: float = field(default_factory=time.monotonic)

    @property
    def logs(self) -> Path:
        return self.trial.folder / "log"


class _Runner:
    """The trials of one `run`: waiting, running, and what became of the rest."""

    def __init__(
        self,
        trials: list[Trial],
        slots: int | None,
        on_update: OnUpdate | None,
        grace_s: float,
        machine: Machine,
        entry: str,
    ) -> None:
        self.trials, self.slots, self.on_update = trials, slots, on_update
        self.grace_s, self.machine, self.entry = grace_s, machine, entry
        self.running: list[_Running] = []
        self.waiting: list[Trial] = []
        self.outcomes: dict[int, Outcome] = {}
        self.durations: list[float] = []
        for trial in trials:
            result = trial.result()
            if result is None:
                self.waiting.append(trial)
                self.outcomes[trial.number] = Outcome(trial, "WAITING")
            else:
                self.outcomes[trial.number] = Outcome(trial, "DONE", seconds=result.get("seconds"))

    def in_order(self) -> list[Outcome]:
        return [self.outcomes[trial.number] for trial in self.trials]

    def tell(self) -> None:
        if self.on_update:
            self.on_update(MappingProxyType(self.outcomes))

    def turn(self) -> None:
        """One look at everything."""
        self.reap()
        while self.waiting and self.start(self.waiting[0]):
            self.waiting.pop(0)
        self.tell()

    def start(self, trial: Trial) -> bool:
        """Start a trial if there is room. True if it needs no more starting."""
        config = trial.config()
        need = Need.of(config)
        found = check(config, self.machine)
        if found:
            self.outcomes[trial.number] = Outcome(trial, "FAILED", error="; ".join(map(str, found)))
            return True
        slots = self.slots or slots_for(need, self.machine)
        if len(self.running) >= slots or self._better_wait(need, slots):
            return False
        threads = self._threads(need, slots, len(self.running))
        gpus = self._gpus(need)
        port, lock = ports.claim()
        env = process.environment(threads=threads, gpus=gpus, grace_s=self.grace_s)
        task = RunRank(str(trial.folder), port, self.entry)
        job_id, controller = process.start(task, trial.folder / "log", need.ranks, env)
        self.running.append(_Running(trial, need, job_id, controller, lock, gpus or ()))
        log = ending.log_of(trial.folder / "log", job_id, 0)
        self.outcomes[trial.number] = Outcome(trial, "RUNNING", log=log)
        return True

    def _threads(self, need: Need, slots: int, running: int) -> int:
        """Threads a rank, if the trial starts beside `running` others and those that wait start as well."""
        side_by_side = min(slots, running + len(self.waiting))
        return max(1, self.machine.cores // (side_by_side * need.ranks))

    def _better_wait(self, need: Need, slots: int) -> bool:
        """Whether the last trials get done sooner if they wait for the ones before them, to have their cores."""
        if not self.running or not self.durations or len(self.waiting) >= slots:
            return False
        if self._threads(need, slots, len(self.running)) >= self._threads(need, slots, 0):
            return False
        left = [other.trial.progress().eta for other in self.running]
        known = [eta for eta in left if eta is not None]
        return len(known) == len(left) and max(known) < _WORTH_WAITING * max(self.durations)

    def _gpus(self, need: Need) -> tuple[str, ...] | None:
        """The GPUs that the fewest trials use; none for the CPU; None (leave it to CUDA) where none were found."""
        if not self.machine.gpus:
            return None
        if not need.on_gpu(self.machine):
            return ()
        use = Counter(gpu for other in self.running for gpu in other.gpus)
        return tuple(sorted(self.machine.gpus, key=lambda gpu: use[gpu])[: need.ranks])

    def reap(self, signum: int | None = None) -> None:
        """Take note of the trials that have ended; after `signum` that is why they did."""
        for entry in [entry for entry in self.running if entry.controller.poll() is not None]:
            left = process.kill_group(entry.controller.pid)  # what a rank has started and left
            self.running.remove(entry)
            entry.port_lock.close()
            outcome = self._outcome(entry, signum)
            if left:
                outcome = replace(outcome, error=f"{outcome.error} (still there after SIGKILL: {left})")
            self.outcomes[entry.trial.number] = outcome
            process.tidy(entry.logs, entry.job_id)

    def _outcome(self, entry: _Running, signum: int | None) -> Outcome:
        seconds = time.monotonic() - entry.started
        end = ending.read(entry.logs, entry.job_id, entry.need.ranks, entry.controller.returncode)
        if entry.trial.result() is not None:
            self.durations.append(seconds)
            error = f"after its result was written: {end.error}" if end.error else ""
            return Outcome(entry.trial, "DONE", error, end.log, seconds)
        if signum is not None:
            return Outcome(entry.trial, "CANCELLED", f"stopped by {signal.Signals(signum).name}", end.log, seconds)
        error = end.error or "ended without writing result.json"
        return Outcome(entry.trial, "FAILED", error, end.log, seconds)

    def stop(self, caught: list[int], tell: bool) -> None:
        """End all that runs, and wait until it is gone: TERM, after the grace (or a second signal) KILL."""
        signum = caught[0] if caught else signal.SIGTERM
        for entry in self.running:
            entry.controller.send_signal(signal.SIGTERM)  # it passes it on to the ranks
            self.outcomes[entry.trial.number] = replace(self.outcomes[entry.trial.number], state="STOPPING")
        deadline = time.monotonic() + self.grace_s
        while self.running:
            if time.monotonic() >= deadline or len(caught) > 1:
                for entry in self.running:
                    process.kill_group(entry.controller.pid)
            self.reap(signum)
            if tell:
                self.tell()
            time.sleep(_POLL_S / 2)
        for trial in self.waiting:
            self.outcomes[trial.number] = Outcome(trial, "CANCELLED", "not started")
        self.waiting.clear()
