"""Writing a trial's metrics.jsonl (read by launcher.sweep.metrics), and the logger that the trainer calls."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import redact
from launcher.train import ownership

#: Least seconds between two lines that only report progress within a phase.
EVERY = 2.0


class MetricsFile:
    """metrics.jsonl of one trial. When a call returns, its line has been passed to the operating system.

    `path` is None on all ranks but the first: they may call the same methods, and nothing is written.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._spoke = 0.0
        self._phase = ""
        self.life: Callable[[str, bool], None] = lambda phase, step_done: None
        """Called at every sign of life, on all ranks, with the phase and whether a step was completed."""
        if path is not None and path.exists():
            _end_last_line(path)

    @property
    def writes(self) -> bool:
        """Whether this is the rank that reports."""
        return self._path is not None

    def phase(self, phase: str, detail: str = "") -> None:
        """Record that a new phase begins."""
        self._phase = phase
        self.life(phase, False)
        self._write({"phase": phase, "detail": detail})
        if self.writes and detail:
            print(f"{phase}: {detail}", flush=True)

    def beat(self, detail: str) -> None:
        """Record progress within a phase; nothing is written if the last line is less than EVERY seconds old."""
        self.life(self._phase, False)
        if self._clock() - self._spoke >= EVERY:
            self._write({"detail": detail})

    def values(self, step: int, max_steps: int, values: Mapping[str, float]) -> None:
        """Record metrics after `step` of `max_steps` optimizer steps; keys include the prefix "train/" or "val/"."""
        self.life(self._phase, "train/loss" in values)
        self._write({"step": step, "max_steps": max_steps, **values})

    def _write(self, line: dict[str, object]) -> None:
        if self._path is None:
            return
        ownership.check(self._path.parent)
        self._spoke = self._clock()
        line = {"time": round(self._spoke, 3), **{key: _plain(value) for key, value in line.items()}}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


class SpokenProgress(MetricsFile):
    """Prints progress to stdout only: metrics.jsonl records the training, which is over."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def writes(self) -> bool:
        return True

    def phase(self, phase: str, detail: str = "") -> None:
        self._phase = phase
        self._say(phase, detail)

    def beat(self, detail: str) -> None:
        if time.time() - self._spoke >= EVERY:
            self._say(self._phase, detail)

    def _say(self, phase: str, detail: str) -> None:
        self._spoke = time.time()
        print(f"{phase}{', ' if detail else ''}{detail}", flush=True)


def _plain(value: object) -> object:
    """Replace NaN and infinity by None: JSON has neither, and every reader must be able to parse the line."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _end_last_line(path: Path) -> None:
    """Add a missing newline: an earlier start may have been killed while it wrote its last line."""
    with path.open("rb+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


class TrialLogger:
    """The `logger` of NeMo-Aligner's trainers: every step goes to metrics.jsonl, every n-th to NeMo's own loggers.

    `loggers` are Lightning's (TensorBoard, ...) as exp_manager made them; `every` is trainer.log_every_n_steps.
    Every validation goes to all of them. `latest` holds the newest metrics under the names that checkpoints use:
    train_loss, val_loss, ...
    """

    def __init__(
        self,
        file: MetricsFile,
        loggers: Sequence[Any],
        every: int,
        max_steps: int,
        latest: dict[str, float] | None = None,
    ) -> None:
        self.file = file
        self.loggers = loggers
        self.every = every
        self.max_steps = max_steps
        self.latest = {} if latest is None else latest

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, prefix: str = "") -> None:
        """Log a step. The trainer numbers training steps from 0; metrics.jsonl counts steps done."""
        values = {f"{prefix}{key}": value for key, value in metrics.items()}
        done = step + 1 if prefix == "train/" else step
        self.file.values(done, self.max_steps, values)
        self.latest |= {name.replace("/", "_"): value for name, value in values.items()}
        if self.file.writes:
            print(_in_words(done, self.max_steps, values, prefix), flush=True)
        if prefix != "train/" or done % self.every == 0 or done in (1, self.max_steps):
            for logger in self.loggers:
                logger.log_metrics(values, step)

    def log_hyperparams(self, parameters: dict[str, object]) -> None:
        """Log a config, without secrets: TensorBoard, W&B and MLflow show it to others."""
        for logger in self.loggers:
            logger.log_hyperparams(redact.config(parameters))

    def save(self) -> None:
        """Flush the loggers before a checkpoint, so that no checkpoint covers steps whose curves could be lost."""
        for logger in self.loggers:
            logger.save()

    def finalize(self) -> None:
        for logger in self.loggers:
            logger.finalize("success")


def _in_words(step: int, max_steps: int, values: Mapping[str, float], prefix: str) -> str:
    """One line for people. The drift is the mean log-ratio to the reference policy (NeMo-Aligner's rewards_*)."""
    loss, accuracy = values[f"{prefix}loss"], values[f"{prefix}acc"]
    chosen, rejected = values[f"{prefix}rewards_chosen_mean"], values[f"{prefix}rewards_rejected_mean"]
    what = "train     " if prefix == "train/" else "validation"
    line = f"step {step:>4}/{max_steps} {what} loss {loss:.4f}  accuracy {accuracy:.2f}"
    return f"{line}  drift of chosen {chosen:+.3f}, of rejected {rejected:+.3f}"
