"""When to stop before the last step: the time is over, or a warning came. All ranks agree, and save together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.train.signals import Listener

#: Wishes other than a signal, which is its own number (1 to 64). Of several ranks' wishes the highest is the reason.
_TIME_LIMIT, _JOB_ENDS = 65, 66
_REASONS = {_TIME_LIMIT: "the time limit", _JOB_ENDS: "the job's end is near"}

#: Seconds taken for a save while none was measured, and kept free beside steps and saves.
_UNKNOWN_SAVE, _SPARE = 30.0, 5.0


class Stopped(Exception):
    """All ranks have agreed to stop; its text is the reason."""


class RunTimer:
    """What NeMo-Aligner's trainers take as `run_timer`: after every step they ask `is_finished()`.

    `max_time` is NeMo's DD:HH:MM:SS from the start of training, None for no limit. `ends_at` is when the job ends, in
    seconds since the epoch (env TRIAL_ENDS_AT where not given): training stops early enough for one more step, as long
    as the longest one so far, and two saves. A signal that `listener` heard stops it as well.
    """

    def __init__(
        self, max_time: str | None = None, listener: Listener | None = None, ends_at: float | None = None
    ) -> None:
        self.seconds = float("inf") if max_time is None else _seconds(max_time)
        self.ends_at = float(os.environ.get("TRIAL_ENDS_AT") or "inf") if ends_at is None else ends_at
        self._listener = listener
        self._start = self._asked = time.monotonic()
        self._longest = 0.0  # between two questions, that is, of a step or of a validation's batch
        self._save: float | None = None

    def start_time(self) -> None:
        """Called by the trainer when training begins."""
        self._start = self._asked = time.monotonic()

    def is_finished(self) -> bool:
        """False. Every rank has to ask.

        Raises Stopped on all of them once any wants to stop: on a yes NeMo-Aligner's trainers would first validate,
        which can take longer than the time that a warning leaves.
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
        """Around a save, whose time is told apart from the steps'."""
        began = time.monotonic()
        yield
        self._asked = time.monotonic()
        self._save = max(self._save or 0.0, self._asked - began)

    def needed(self) -> float:
        """Seconds that the next step and a save would take, generously."""
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
