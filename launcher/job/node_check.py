"""Checks whether a node can train. Its first rank calls this before anything heavy starts. Standard library only.

An unfit node would fail the trial minutes later with an unclear error. The checks: the node has as many GPUs as the job
was given, no other job uses their memory, there is room for temporary files, and the clock agrees with the shared
disk's. Without nvidia-smi, GPUs are not checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

UNFIT = "NodeUnfit"
MOST_IN_USE_MIB = 2048
"""Most memory in use on a GPU; the driver itself takes a few hundred MiB."""
LEAST_ROOM_MIB = 256
"""Least free space for temporary files."""
MOST_SKEW_S = 120.0
"""If clocks differ by minutes, requeues, the trial's timer and Slurm's credentials fail."""
#: Set where Slurm gave the job a share of a GPU (gres/shard, gres/mps), whose memory others may use as well.
_SHARED = ("SLURM_SHARDS_ON_NODE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
_PATIENCE_S = 60.0  # nvidia-smi without persistence mode, on a node with 8 GPUs


class NodeUnfit(Exception):
    """This node cannot train; str() says why, in one line."""


def check(trial: Path, env: Mapping[str, str] | None = None) -> None:
    """Raises NodeUnfit with everything that is wrong with this node. `trial` is a folder on the shared disk."""
    env = os.environ if env is None else env
    wrong = [*_gpus(env), *_room(), *_clock(trial)]
    if wrong:
        raise NodeUnfit("; ".join(wrong))


def _gpus(env: Mapping[str, str]) -> list[str]:
    given = env.get("SLURM_GPUS_ON_NODE", "")
    if not given.isdigit() or shutil.which("nvidia-smi") is None:
        return []
    fields = "index,uuid,memory.used,mig.mode.current"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, errors="replace")
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi does not answer in {_PATIENCE_S:.0f} s"]
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"nvidia-smi fails: {output[0]}"]
    cards = [_Card(*(cell.strip() for cell in line.split(","))) for line in done.stdout.splitlines()]
    if any(card.mig == "Enabled" for card in cards):
        return []  # the job has parts of cards: their number is not the cards', and others use the rest of a card
    if len(cards) < int(given):
        return [f"{len(cards)} GPUs of {given} are there"]
    if any(env.get(name) for name in _SHARED):
        return []
    # If the job sees only its own GPUs, they are renumbered from 0, in CUDA_VISIBLE_DEVICES as well.
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    ours = [card for card in cards if card.index in visible or card.uuid in visible] or cards
    busy = [card for card in ours if card.used.isdigit() and int(card.used) > MOST_IN_USE_MIB]
    return [f"GPU {card.index} has {card.used} MiB in use before the trial starts" for card in busy]


@dataclass(frozen=True)
class _Card:
    """A line of nvidia-smi."""

    index: str
    uuid: str
    used: str
    """MiB in use, or a word in brackets."""
    mig: str


def _room() -> list[str]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free >> 20
    return [f"{folder} has {free} MiB left"] if free < LEAST_ROOM_MIB else []


def _clock(trial: Path) -> list[str]:
    """Compare this node's clock with the time that the disk gives a new file: a file server has its own clock."""
    with tempfile.NamedTemporaryFile(dir=trial / "log", prefix=".clock-") as file:  # empty: the server sets its time
        skew = time.time() - os.stat(file.name).st_mtime
    return [f"its clock is {skew:+.0f} s off the shared disk's"] if abs(skew) > MOST_SKEW_S else []
