"""What a rank needs from Slurm before it trains: its number, its variables, rank 0's address. Standard library only."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from launcher import whole_file
from launcher.job import ports

_PATIENCE_S = 1800  # ranks start as their nodes come up; a node may first import an image of 20 GB


def rank_variables(env: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables from those that srun sets for a task (srun(1), OUTPUT ENVIRONMENT VARIABLES)."""
    ranks, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_STEP_NUM_NODES") or env["SLURM_NNODES"])
    return {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "NODE_RANK": env["SLURM_NODEID"],
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks // nodes),
    }


def start_name(env: Mapping[str, str]) -> str:
    """The name of this start of the trial: the element's own job id, and how often the job was requeued."""
    return f"{env['SLURM_JOB_ID']}.{env.get('SLURM_RESTART_COUNT', '0')}"


def node_name(env: Mapping[str, str]) -> str:
    """Slurm's name of this node, else the host name."""
    return env.get("SLURMD_NODENAME") or socket.gethostname()


def meet(trial: Path, env: Mapping[str, str]) -> tuple[str, int, socket.socket | None]:
    """(address, port, lock) of rank 0, which writes them into the trial's folder, where the other ranks find them.

    Each start of a job has its own file, so that a requeued start never reads its predecessor's. Raises TimeoutError.
    """
    place = trial / "log" / f"{start_name(env)}.{env.get('SLURM_STEP_ID', '0')}_rendezvous"
    if env["SLURM_PROCID"] == "0":
        # trials of one job start at the same moment, so each searches from another port
        port, lock = ports.claim(int(env["SLURM_JOB_ID"]) + 1000 * int(env.get("SLURM_STEP_ID", "0")))
        whole_file.write_text(place, f"{_address(env)} {port}\n")
        return _address(env), port, lock
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            address, port_text = place.read_text().split()
            return address, int(port_text), None
        except FileNotFoundError:
            time.sleep(0.2)
    raise TimeoutError(f"rank 0 did not write {place} within {_PATIENCE_S} s; is the sweep's folder on a shared disk?")


def _address(env: Mapping[str, str]) -> str:
    """Slurm's name of this node if it resolves, as on most sites, else the host name."""
    name = env.get("SLURMD_NODENAME", "")
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return socket.gethostname()
    return name or socket.gethostname()


#: Folders in the home folder that libraries write to: the variable, and its default.
_CACHES = {
    "XDG_CACHE_HOME": "~/.cache",
    "HF_HOME": "~/.cache/huggingface",
    "TRITON_CACHE_DIR": "~/.triton",
    "MPLCONFIGDIR": "~/.config/matplotlib",
}


def writable_caches(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that move unwritable caches into a private folder in the node's temporary folder.

    A container may be read-only and have no home folder. Importing NeMo then fails: it makes a folder in HF_HOME.
    """
    home = env.get("HOME", "")
    places = {name: env.get(name) or default.replace("~", home, 1) for name, default in _CACHES.items()}
    wanting = [name for name, place in places.items() if not home or not _writable(Path(place))]
    if not wanting and home:
        return {}
    private = tempfile.mkdtemp(prefix=f"launcher-{os.getuid()}-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    moved = {name: os.path.join(private, name.lower()) for name in wanting}
    return moved if home and _writable(Path(home)) else {"HOME": private, **moved}


def _writable(folder: Path) -> bool:
    """Whether this process can create files in the folder, or create the folder if it does not exist."""
    there = next(place for place in (folder, *folder.parents, Path("/")) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False
