"""Whether a node is fit to train on, looked at by its first rank before anything heavy starts. Standard library only.

A node that is not would fail the trial minutes later in a way that says little. What is looked at: as many GPUs as the
job was given, nobody else's memory in use on them, some room for temporary files, and a clock that goes with the shared
disk's. Where there is no nvidia-smi nothing is said about GPUs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

UNFIT = "NodeUnfit"
MOST_IN_USE_MIB = 2048
"""Of a GPU's memory: the driver takes some hundred MiB itself."""
LEAST_ROOM_MIB = 256
"""For temporary files."""
MOST_SKEW_S = 120.0
"""A requeue, the trial's clock and Slurm's credentials go wrong where clocks differ by minutes."""
_PATIENCE_S = 60.0  # nvidia-smi without persistence mode, on a node of eight


class NodeUnfit(Exception):
    """str() is what is wrong, in one line."""


def check(trial: Path, env: Mapping[str, str] | None = None) -> None:
    """Raises NodeUnfit with all that is wrong with this node. `trial` lies on the shared disk."""
    env = os.environ if env is None else env
    wrong = [*_gpus(env), *_room(), *_clock(trial)]
    if wrong:
        raise NodeUnfit("; ".join(wrong))


def _gpus(env: Mapping[str, str]) -> list[str]:
    given = env.get("SLURM_GPUS_ON_NODE", "")
    if not given.isdigit() or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, errors="replace")
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi does not answer in {_PATIENCE_S:.0f} s"]
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return [f"nvidia-smi fails: {said[0]}"]
    used = {
        index.strip(): memory.strip() for index, _, memory in (line.partition(",") for line in done.stdout.splitlines())
    }
    if len(used) < int(given):
        return [f"{len(used)} GPUs of {given} are there"]
    # Where the job's GPUs are all that it sees, they are numbered anew, and these numbers with them.
    ours = [index for index in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if index in used] or list(used)
    busy = [index for index in ours if used[index].isdigit() and int(used[index]) > MOST_IN_USE_MIB]
    return [f"GPU {index} has {used[index]} MiB in use before the trial starts" for index in busy]


def _room() -> list[str]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free >> 20
    return [f"{folder} has {free} MiB left"] if free < LEAST_ROOM_MIB else []


def _clock(trial: Path) -> list[str]:
    """Against the time that the disk gives a new file: a file server has a clock of its own."""
    with tempfile.NamedTemporaryFile(dir=trial / "log", prefix=".clock-") as file:  # unwritten: then it is the server's
        skew = time.time() - os.stat(file.name).st_mtime
    return [f"its clock is {skew:+.0f} s off the shared disk's"] if abs(skew) > MOST_SKEW_S else []
