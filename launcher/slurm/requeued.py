"""Requeued jobs that Slurm holds for two minutes: let them start as soon as there is room."""

from __future__ import annotations

import time
from collections.abc import Iterable

from launcher.slurm import client
from launcher.slurm.rows import QueueRow

_SETTLED_S = 3.0  # see client.start_now

_held: dict[str, float] = {}  # requeued elements that Slurm holds, and when they were first seen so


def start_held(rows: Iterable[QueueRow]) -> list[str]:
    """Have the requeued jobs among the rows start as soon as there is room. To be called again and again.

    Only a process outside of the job can do it: the hold begins when the job has ended, and its script with it. Returns
    their names. Raises SlurmError.
    """
    now = time.monotonic()
    held = {row.name for row in rows if row.restarts and row.reason == "BeginTime" and row.state.word == "PENDING"}
    for name in set(_held) - held:
        del _held[name]
    ready = sorted(name for name in held if now - _held.setdefault(name, now) >= _SETTLED_S)
    client.start_now(ready)
    return ready
