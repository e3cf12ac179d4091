"""The evaluation of a local run's trials after their training: a separate process, as `evaluate` runs it.

Training comes first: the evaluation starts when no trial waits any more, and on a CPU when none runs; on GPUs it takes
one that is free. One process evaluates all that is done by then, so that the base model is loaded once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.local import process
from launcher.local.end_with_parent import PARENT
from launcher.machine import Machine
from launcher.sweep import evaluation
from launcher.sweep.trial import Trial

MODULE = "launcher.evaluate"


class Queue:
    """Trials that are done and wait for their evaluation, and those that are evaluated."""

    def __init__(self, machine: Machine, module: str, grace_s: float) -> None:
        self._machine, self._module, self._grace_s = machine, module, grace_s
        self._waiting: list[Trial] = []
        self._running: list[Trial] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, trial: Trial) -> None:
        self._waiting.append(trial)

    def start(self, used: Sequence[str], training: bool) -> list[Trial]:
        """Evaluate the waiting trials, if there is room beside training; `used`: GPUs of training. Returns them."""
        free = [gpu for gpu in self._machine.gpus if gpu not in used]
        if self._process or not self._waiting or (training and not free):
            return []
        gpus = tuple(free[:1]) if self._machine.gpus else None
        env = process.environment(threads=self._machine.cores, gpus=gpus, grace_s=self._grace_s)
        self._running, self._waiting = sorted(self._waiting, key=lambda trial: trial.number), []
        folder = self._running[0].folder.parent
        self._log = folder / evaluation.FOLDER / "local.out"
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(folder), *(str(trial.number) for trial in self._running)],
                env={**env, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        return self._running

    def ended(self) -> dict[Trial, str]:
        """If the process has ended: for each of its trials why it was not evaluated, "" if it was."""
        if self._process is None or self._process.poll() is None:
            return {}
        failures = {trial: self._failure(trial) for trial in self._running}
        self.stop_process()
        return failures

    def _failure(self, trial: Trial) -> str:
        state = evaluation.read(trial.folder)
        if state.error:
            return state.text
        code = self._process.returncode if self._process else None
        return "" if state.complete else f"its evaluation ended with exit code {code}, log {self._log}"

    def stop(self) -> list[Trial]:
        """End the running evaluation and drop waiting trials; returns all of these. A later evaluation continues."""
        stopped = [*self._running, *self._waiting]
        self._waiting = []
        self.stop_process()
        return stopped

    def stop_process(self) -> None:
        if self._process:
            process.kill_group(self._process.pid)
            self._process.wait()
        self._process, self._running = None, []
