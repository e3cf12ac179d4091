"""Nodes that a sweep avoids: `<sweep>/bad_nodes/<cluster>/<node>.json`, a file for each node, with the reason.

The first trial that fails because of a node writes the file (launcher.job.begin_end). Remove the file to use the node
again.
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
    """The trial whose start failed on it."""
    time: float
    """Seconds since the epoch."""


def read(sweep: Path, cluster: str | None = None) -> list[BadNode]:
    """The nodes of all clusters or of one, sorted by name."""
    nodes = []
    for path in sorted(sweep.glob(f"{FOLDER}/*/*.json")):
        try:
            note = whole_file.read_json(path)
            node = BadNode(path.stem, path.parent.name, str(note["why"]), int(note["trial"]), float(note["time"]))
        except (ValueError, KeyError, TypeError):
            continue  # removed at this moment
        if cluster in (None, node.cluster):
            nodes.append(node)
    return nodes


def add(sweep: Path, cluster: str, name: str, why: str, trial: int) -> None:
    """Record a bad node. If the disk is full, it is not recorded and may be used again."""
    path = sweep / FOLDER / cluster / f"{name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # trials that share the node may write this at the same moment
        whole_file.write_json(path, {"why": why, "trial": trial, "time": time.time()})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{path} cannot be written: {error.strerror}", flush=True)


def remove(sweep: Path, node: BadNode) -> None:
    (sweep / FOLDER / node.cluster / f"{node.name}.json").unlink(missing_ok=True)
