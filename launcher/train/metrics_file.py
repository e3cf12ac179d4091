"""Writing a trial's metrics.jsonl (read by launcher.sweep.metrics), and the logger that the trainer calls."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.train import ownership

#: Seconds between two lines that only say how far a phase is.
EVERY = 2.0


class MetricsFile:
    """metrics.jsonl of one trial; every line is out of this process's hands when the call returns.

    `path` is None on all ranks but the first: they may call the same methods, and nothing is written.
    """

    def __init__(self, path: Path | None, clock: Any = time.time) -> None:
        self._path = path
        self._clock = clock
        self._spoke = 0.0
        self._phase = ""
        self.life: Callable[[str, bool], None] = lambda phase, step_done: None
        """Told of every sign of life: the phase, and whether a step is done. On all ranks."""
        if path is not None and path.exists():
            _end_last_line(path)

    @property
    def writes(self) -> bool:
        """Whether this is the rank that reports."""
        return self._path is not None

    def phase(self, phase: str, detail: str = "") -> None:
        """A change of phase."""
        self._phase = phase
        self.life(phase, False)
        self._write({"phase": phase, "detail": detail})
        if self.writes and detail:
            print(f"{phase}: {detail}", flush=True)

    def beat(self, detail: str) -> None:
        """A sign of life within a phase; left out where the last line is less than EVERY seconds old."""
        self.life(self._phase, False)
        if self._clock() - self._spoke >= EVERY:
            self._write({"detail": detail})

    def values(self, step: int, max_steps: int, values: Mapping[str, float]) -> None:
        """Metrics after `step` of `max_steps` optimizer steps; keys carry their prefix, "train/" or "val/"."""
        self.life(self._phase, "train/loss" in values)
        self._write({"step": step, "max_steps": max_steps, **values})

    def _write(self, line: dict[str, Any]) -> None:
        if self._path is None:
            return
        ownership.check(self._path.parent)
        self._spoke = self._clock()
        line = {"time": round(self._spoke, 3), **{key: _plain(value) for key, value in line.items()}}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN; a diverged loss is written as null, so that every reader can parse its line."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _end_last_line(path: Path) -> None:
    """A predecessor may have been killed in the middle of its last line."""
    with path.open("rb+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


class TrialLogger:
    """The `logger` of NeMo-Aligner's trainers: every step goes to metrics.jsonl, every n-th to NeMo's own loggers.

    `loggers` are Lightning's (TensorBoard, ...) as exp_manager made them, `every` is trainer.log_every_n_steps.
    Validations go to all of them, always. `latest` is kept up to date: metrics by the names that checkpoints know them
    by, train_loss, val_loss, ...
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
        """The trainer counts a training step before it, a validation after it; metrics.jsonl counts steps done."""
        values = {f"{prefix}{key}": value for key, value in metrics.items()}
        done = step + 1 if prefix == "train/" else step
        self.file.values(done, self.max_steps, values)
        self.latest |= {name.replace("/", "_"): value for name, value in values.items()}
        if self.file.writes:
            print(_in_words(done, self.max_steps, values, prefix), flush=True)
        if prefix != "train/" or done % self.every == 0 or done in (1, self.max_steps):
            for logger in self.loggers:
                logger.log_metrics(values, step)

    def log_hyperparams(self, parameters: dict[str, Any]) -> None:
        for logger in self.loggers:
            logger.log_hyperparams(parameters)

    def save(self) -> None:
        """Have what was logged written out: a checkpoint of these steps must not outlive their curves."""
        for logger in self.loggers:
            logger.save()

    def finalize(self) -> None:
        for logger in self.loggers:
            logger.finalize("success")


def _in_words(step: int, max_steps: int, values: Mapping[str, float], prefix: str) -> str:
    """One line for people. The drift is the mean log-ratio to the reference, as NeMo-Aligner's rewards_* are."""
    loss, accuracy = values[f"{prefix}loss"], values[f"{prefix}acc"]
    chosen, rejected = values[f"{prefix}rewards_chosen_mean"], values[f"{prefix}rewards_rejected_mean"]
    what = "train     " if prefix == "train/" else "validation"
    line = f"step {step:>4}/{max_steps} {what} loss {loss:.4f}  accuracy {accuracy:.2f}"
    return f"{line}  drift of chosen {chosen:+.3f}, of rejected {rejected:+.3f}"
