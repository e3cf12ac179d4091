"""Nodes that a sweep keeps away from: `<sweep>/bad_nodes/<cluster>/<node>.json`, a file each, with why.

A node is put there by the first trial that it failed, on the node itself (launcher.job.begin_end); removing its
file lets it be used again.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from pathlib import Path

from launcher import whole_file

FOLDER = "bad_nodes"


@dataclass(frozen=True)
class BadNode:
    name: str
    cluster: str
    why: str
    trial: int
    """Whose start it failed."""
    time: float
    """Seconds since the epoch."""


def read(sweep: Path, cluster: str | None = None) -> list[BadNode]:
    """All of them, or one cluster's, by name."""
    found = []
    for path in sorted(sweep.glob(f"{FOLDER}/*/*.json")):
        try:
            note = whole_file.read_json(path)
            one = BadNode(path.stem, path.parent.name, str(note["why"]), int(note["trial"]), float(note["time"]))
        except (ValueError, KeyError, TypeError):
            continue  # removed at this moment
        if cluster in (None, one.cluster):
            found.append(one)
    return found


def add(sweep: Path, cluster: str, name: str, why: str, trial: int) -> None:
    """A full disk takes no note, and the node is tried again."""
    path = sweep / FOLDER / cluster / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # trials that share the node find out at the same moment
        whole_file.write_json(path, {"why": why, "trial": trial, "time": time.time()})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{path} cannot be written: {error.strerror}", flush=True)


def remove(sweep: Path, one: BadNode) -> None:
    (sweep / FOLDER / one.cluster / f"{one.name}.json").unlink(missing_ok=True)
