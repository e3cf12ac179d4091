"""The store over which the ranks of one node meet is not open to the network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import os, sys, torch
from launcher.train.nemo_aligner import loopback_store
from launcher.train.ranks import Ranks
ranks = Ranks.from_environment()
loopback_store.host(ranks)
torch.distributed.init_process_group("gloo")
port = int(os.environ["MASTER_PORT"])
rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
listening = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
total = torch.ones(1)
torch.distributed.all_reduce(total)
torch.distributed.barrier()
print(int(total), *listening, flush=True)
"""


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_of_one_node_meet_on_the_loopback_interface(nodes: int) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(2 // nodes), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in started:
        said, _ = process.communicate(timeout=120)
        total, *addresses = said.split()
        assert total == "2"
        everywhere = {"00000000", "0" * 32}
        assert addresses and (nodes == 1) == (not everywhere & set(addresses)), addresses
