"""Decides when to stop before the last step: time is up, or a warning came. All ranks agree, and save together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.train.signals import Listener

#: Reasons to stop other than a signal, whose reason is its number (1 to 64). If ranks disagree, the highest wins.
_TIME_LIMIT, _JOB_ENDS = 65, 66
_REASONS = {_TIME_LIMIT: "the time limit", _JOB_ENDS: "the job's end is near"}

#: Seconds: assumed for a save until one was measured; reserve on top of steps and saves.
_UNKNOWN_SAVE, _SPARE = 30.0, 5.0


class Stopped(Exception):
    """All ranks have agreed to stop. str() is the reason."""


class RunTimer:
    """The `run_timer` of NeMo-Aligner's trainers: they call `is_finished()` after every step.

    `max_time` is NeMo's DD:HH:MM:SS from the start of training, None for no limit. `ends_at` is when the job ends, in
    seconds since the epoch (default: env TRIAL_ENDS_AT). Training stops early enough to leave time for one more step,
    as long as the longest one so far, and two saves. A signal that `listener` received stops training as well.
    """

    def __init__(
        self, max_time: str | None = None, listener: Listener | None = None, ends_at: float | None = None
    ) -> None:
        self.seconds = float("inf") if max_time is None else _seconds(max_time)
        self.ends_at = float(os.environ.get("TRIAL_ENDS_AT") or "inf") if ends_at is None else ends_at
        self._listener = listener
        self._start = self._asked = time.monotonic()
        self._longest = 0.0  # seconds between two calls of is_finished: a step, or a batch of a validation
        self._save: float | None = None

    def start_time(self) -> None:
        """Called by the trainer when training begins."""
        self._start = self._asked = time.monotonic()

    def is_finished(self) -> bool:
        """Always returns False. Every rank has to call it.

        Raises Stopped on all ranks as soon as one wants to stop. It does not return True, because NeMo-Aligner's
        trainers would then validate first, which can take longer than the time that a warning leaves.
        """
        import torch

        now = time.monotonic()
        self._longest, self._asked = max(self._longest, now - self._asked), now
        wish = torch.tensor([self._wish(now)], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
        agreed = int(wish.item())
        if agreed:
            raise Stopped(_REASONS.get(agreed) or f"signal {signal.Signals(agreed).name}")
        return False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Wrap a save in this, so that its time is measured as a save's, not as a step's."""
        began = time.monotonic()
        yield
        self._asked = time.monotonic()
        self._save = max(self._save or 0.0, self._asked - began)

    def needed(self) -> float:
        """A generous estimate of the seconds that the next step and a save take."""
        save = _UNKNOWN_SAVE if self._save is None else 2 * self._save
        return 1.25 * self._longest + save + _SPARE

    def _wish(self, now: float) -> int:
        if self._listener is not None and self._listener.heard > 0:
            return self._listener.heard
        if time.time() + self.needed() > self.ends_at:
            return _JOB_ENDS
        return _TIME_LIMIT if now - self._start >= self.seconds else 0


def _seconds(max_time: str) -> float:
    days, hours, minutes, seconds = (int(part) for part in max_time.strip().split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
