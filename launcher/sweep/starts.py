"""Records each start of a trial on Slurm (`<trial>/starts.jsonl`, two lines a start), and which start owns the trial.

A start has the name of its logs, `1234.1`: the element's own job id, and how often it was requeued. All starts that
follow from one submission are a chain; the limits on starts apply to a chain. `retry` begins a new chain.
"""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launcher import whole_file

Kind = Literal[
    "done", "preempted", "asked", "requeued", "timeout", "node", "failure", "refused", "cancelled", "replaced"
]
#: How a start ended, in words.
SAID: dict[str, str] = {
    "done": "done",
    "preempted": "preempted",
    "asked": "asked to stop by a signal",
    "requeued": "sent back into the queue by hand or by Slurm",
    "timeout": "reached its time limit",
    "node": "a node failed",
    "failure": "failed",
    "refused": "failed in a way that would be repeated",
    "cancelled": "cancelled",
    "replaced": "another start has taken over",
}


#: `then` begins with this if the trial gave up; the reason follows.
GAVE_UP = "gave up: "


@dataclass(frozen=True)
class Start:
    """One start, with its end if that is known."""

    name: str
    """As in the names of its logs: `1234.1`, the element's own job id and how often it was requeued."""
    chain: str
    """The element that was submitted, `1230_2`."""
    nodes: str
    began: float
    first_step: int
    """Optimizer steps of the last whole checkpoint, when it began."""
    kind: Kind | None = None
    """None: it runs, or Slurm ended it before it could record its end."""
    why: str = ""
    ended: float | None = None
    last_step: int = 0
    """Like first_step, at its end."""
    blamed: str = ""
    """The node that is at fault."""
    then: str = ""
    """What was done about it: `requeued`, `goes on as job 77_2`, `gave up: ...`."""

    @property
    def gave_up(self) -> bool:
        return self.then.startswith(GAVE_UP)

    @property
    def progress(self) -> bool:
        """Whether it saved a later checkpoint than the one it began from."""
        return self.last_step > self.first_step


def read(trial: Path) -> list[Start]:
    """All starts, oldest first. A truncated line is ignored: the node may have died while writing it."""
    starts: dict[str, dict[str, Any]] = {}
    known = set(Start.__dataclass_fields__)
    for line in (whole_file.read(trial / "starts.jsonl") or b"").splitlines():
        try:
            note = {key: value for key, value in json.loads(line).items() if key in known}
            starts.setdefault(note["name"], {}).update(note)
        except (ValueError, KeyError, AttributeError):
            continue
    return [Start(**note) for note in starts.values() if {"chain", "began", "first_step", "nodes"} <= set(note)]


def began(trial: Path, start: Start) -> None:
    _append(trial, {key: value for key, value in asdict(start).items() if value not in (None, "")})


def ended(trial: Path, name: str, kind: Kind, why: str, step: int, then: str = "", blamed: str = "") -> None:
    """Record that a start has ended now. `step`: optimizer steps of the last whole checkpoint."""
    now = round(time.time(), 3)
    note = {"name": name, "kind": kind, "why": why, "last_step": step, "ended": now, "blamed": blamed}
    _append(trial, {**note, "then": then})


def goes_on(trial: Path, name: str, then: str) -> None:
    """Record what was done about the end of a start."""
    _append(trial, {"name": name, "then": then})


def _append(trial: Path, note: dict[str, object]) -> None:
    """Append the note in one write, so that two machines do not mix lines; after a truncated line, on a new line.

    If the disk is full, nothing is recorded and the trial goes on: the next start asks the accounting instead.
    """
    path = trial / "starts.jsonl"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            cut = b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""
            os.write(descriptor, cut + json.dumps(note).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{path} cannot be written: {error.strerror}", flush=True)


# -- one start at a time -----------------------------------------------------------------------------------------------


def take_over(trial: Path, name: str) -> None:
    """Make this start the trial's owner.

    Ranks of an earlier start may still run on a node that Slurm has lost: they read this before they write, and exit.
    """
    (trial / "log").mkdir(exist_ok=True)
    whole_file.write_text(trial / "log" / "current", name + "\n")


def owner(trial: Path) -> str:
    """The start that owns the trial; "" if none does."""
    return (whole_file.read(trial / "log" / "current") or b"").decode(errors="replace").strip()
