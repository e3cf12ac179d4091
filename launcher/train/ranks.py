"""Where a rank runs: its number, its threads, its CPU. Light to import: torch is imported inside functions."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process's rank among the trial's processes, from torch.distributed's env variables."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> Ranks:
        """Read the env variables; if none is set, the trial is a single process."""
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        return cls(
            rank=int(os.environ.get("RANK", 0)),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            world_size=world_size,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        )

    @property
    def nodes(self) -> int:
        return self.world_size // self.local_world_size

    def export(self) -> None:
        """Set each unset variable that Lightning's torch-elastic environment or torch.distributed reads.

        Raises RuntimeError if there are several ranks and MASTER_ADDR or MASTER_PORT is not set.
        """
        if self.world_size == 1:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(_free_port()))
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise RuntimeError(f"WORLD_SIZE={self.world_size}, but {' and '.join(missing)} not set")
        for name, value in (
            ("RANK", self.rank),
            ("LOCAL_RANK", self.local_rank),
            ("WORLD_SIZE", self.world_size),
            ("LOCAL_WORLD_SIZE", self.local_world_size),
            ("GROUP_RANK", self.rank // self.local_world_size),  # Lightning takes the node's number from it
        ):
            os.environ.setdefault(name, str(value))


@dataclass(frozen=True)
class Device:
    """What the ranks compute on."""

    accelerator: str
    """"gpu" or "cpu", a value of trainer.accelerator."""
    precision: str
    """"bf16", "bf16-mixed" or "32", a value of trainer.precision."""
    name: str
    """The model name of the CPU or GPU."""


def share_cores(ranks: Ranks) -> int:
    """Divide the cores among this node's ranks and, on one node, connect them locally; returns threads per rank."""
    import torch

    if ranks.nodes == 1 and sys.platform == "linux":
        # Gloo looks up this host's name to choose a network card, which fails on machines without a network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // ranks.local_world_size))
    return torch.get_num_threads()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
