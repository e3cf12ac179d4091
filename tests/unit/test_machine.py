"""What this machine has to give, and how many trials that is enough for."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import pytest

from launcher import machine
from launcher.job import ports
from launcher.local.capacity import Need, check, slots_for
from launcher.machine import Machine

MACHINE = Machine(cores=4, memory_gb=64.0)


def need(ranks: int = 1, memory: float | None = None, accelerator: str = "auto") -> Need:
    trainer = {"devices": ranks, "accelerator": accelerator}
    return Need.of({"trainer": trainer, "cluster": {"memory_gb_per_rank": memory}})


@pytest.mark.parametrize(
    ("wanted", "machine", "slots"),
    [
        (need(), Machine(2, 23.0), 2),
        (need(), Machine(16, 7.0), 2),  # 3 GB a rank where the config does not say
        (need(memory=1.2), Machine(16, 7.0), 5),
        (need(ranks=2), Machine(5, 100.0), 2),
        (need(ranks=8), Machine(2, 1.0), 1),
        (need(), Machine(16, 100.0, ("0", "1")), 2),
        (need(ranks=2), Machine(16, 100.0, ("0", "1")), 1),
        (need(accelerator="cpu"), Machine(16, 100.0, ("0",)), 16),
    ],
)
def test_slots(wanted: Need, machine: Machine, slots: int) -> None:
    assert slots_for(wanted, machine) == slots


def test_what_this_machine_cannot_do() -> None:
    config = {"trainer": {"devices": 4, "num_nodes": 2}}
    assert [finding.where for finding in check(config, MACHINE)] == ["trainer.num_nodes"]
    assert [f.where for f in check(config, Machine(8, 64.0, ("0",)))] == ["trainer.num_nodes", "trainer.devices"]


@pytest.mark.parametrize(
    ("visible", "expected"), [("", ()), ("-1", ()), ("0,2", ("0", "2")), ("MIG-1, 3,-1,4", ("MIG-1", "3"))]
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, visible: str, expected: tuple[str, ...]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == expected


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 8, 32.0),
        ({"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"}, 8, 32.0),
        ({"cpu.max": "150000 100000", "memory.max": "4000000000", "memory.current": "1000000000"}, 1, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 32.0),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3, 32.0),
        ({"memory/memory.limit_in_bytes": "2000000000", "memory/memory.usage_in_bytes": "3000000000"}, 8, 0.0),
    ],
)
def test_a_containers_limits_are_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int, memory: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_meminfo", lambda: 32_000_000_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.cores() == cores and machine.available_memory_gb() == memory


def test_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, lock = ports.claim(7)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # as in a container, which has a /tmp of its own
    only = range(port, port + 1)
    with pytest.raises(OSError, match="in use"):
        ports.claim(7, only)
    assert ports.claim(7)[0] != port, "another trial goes on with the next one"
    lock.close()
    with socket.socket() as listener:
        listener.bind(("", port))
        with pytest.raises(OSError, match="in use"):
            ports.claim(7, only)
    assert ports.claim(7, only)[0] == port
