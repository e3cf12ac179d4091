"""Lets requeued jobs start as soon as there is room, although Slurm would hold them for two minutes."""

from __future__ import annotations

import time
from collections.abc import Iterable

from launcher.slurm import client
from launcher.slurm.rows import QueueRow

_SETTLED_S = 3.0  # see client.start_now

_held: dict[str, float] = {}  # requeued elements that Slurm holds, and when this was first seen (time.monotonic)


def start_held(rows: Iterable[QueueRow]) -> list[str]:
    """Let the requeued jobs among the rows start as soon as there is room. Call it repeatedly.

    Only a process outside the job can do this: the hold begins after the job and its script have ended. Returns the
    names of the jobs. Raises SlurmError.
    """
    now = time.monotonic()
    held = {row.name for row in rows if row.restarts and row.reason == "BeginTime" and row.state.word == "PENDING"}
    for name in set(_held) - held:
        del _held[name]
    ready = sorted(name for name in held if now - _held.setdefault(name, now) >= _SETTLED_S)
    client.start_now(ready)
    return ready
