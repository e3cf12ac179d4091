"""When to stop before the last step: the time is over, or a signal came. All ranks agree, so that all save together."""

from __future__ import annotations

import signal
import time
from types import FrameType


class RunTimer:
    """What NeMo-Aligner's trainers take as `run_timer`: after every step they ask `is_finished()`, and where the answer
    is yes they validate, save a `-last` checkpoint and return.

    `max_time` is NeMo's DD:HH:MM:SS, None for no limit. Each of `signals` asks for the same kind of stop.
    """

    def __init__(self, max_time: str | None = None, signals: tuple[signal.Signals, ...] = ()) -> None:
        self.seconds = float("inf") if max_time is None else _seconds(max_time)
        self.reason = ""
        """Why this rank wants to stop, or why all do once is_finished() said yes; "" while nobody does."""
        self._start = time.monotonic()
        self._old = {number: signal.signal(number, self._on_signal) for number in signals}

    def start_time(self) -> None:
        """Called by the trainer when training begins."""
        self._start = time.monotonic()

    def is_finished(self) -> bool:
        """Whether any rank wants to stop. Every rank has to ask."""
        import torch

        if not self.reason and time.monotonic() - self._start >= self.seconds:
            self.reason = "the time limit"
        wish = torch.tensor([bool(self.reason)], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.all_reduce(wish, op=torch.distributed.ReduceOp.MAX)
        stop = bool(wish.item())
        if stop and not self.reason:
            self.reason = "another rank's wish"
        return stop

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"signal {signal.Signals(number).name}"


def _seconds(max_time: str) -> float:
    days, hours, minutes, seconds = (int(part) for part in max_time.strip().split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
