"""The look at a node before training: GPUs as nvidia-smi knows them, room, clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.job import node_check
from launcher.job.node_check import NodeUnfit, check


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int = 0) -> None:
    """An nvidia-smi that says `text`."""
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\nexit {code}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def cards(*used: int, mig: str = "Disabled") -> str:
    """nvidia-smi's lines: index, uuid, MiB in use, whether cards are divided."""
    return "\n".join(f"{index}, GPU-{index}, {memory}, {mig}" for index, memory in enumerate(used))


def test_without_gpus_there_is_nothing_to_ask(trial: Path) -> None:
    check(trial, {})


@pytest.mark.parametrize(
    ("text", "code", "visible", "wrong"),
    [
        (cards(4, 511), 0, "0,1", ""),
        (cards(4), 0, "0,1", "1 GPUs of 2 are there"),
        (cards(4, 70123), 0, "0,1", "GPU 1 has 70123 MiB in use before the trial starts"),
        (cards(70000, 4, 4, 70000), 0, "1,2", ""),
        (cards(70000, 4, 4, 70000), 0, "GPU-1,GPU-2", ""),
        (cards(4, 70000), 0, "GPU-0,GPU-1", "GPU 1 has 70000 MiB in use"),
        (cards(70000, mig="Enabled"), 0, "MIG-a,MIG-b", ""),
        (cards(4, 70000, mig="[N/A]"), 0, "0,1", "GPU 1 has 70000 MiB in use"),
        ("Unable to determine the device handle for GPU 0000:07:00.0", 15, "0,1", "nvidia-smi fails: Unable.*"),
    ],
)
def test_gpus(trial: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, visible: str, wrong: str) -> None:
    smi(trial, monkeypatch, text, code)
    env = {"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": visible}
    if not wrong:
        check(trial, env)
        return
    with pytest.raises(NodeUnfit, match=wrong):
        check(trial, env)


@pytest.mark.parametrize("variable", ["SLURM_SHARDS_ON_NODE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"])
def test_a_gpu_that_is_shared_may_be_in_use(trial: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    smi(trial, monkeypatch, cards(70000))
    env = {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0"}
    with pytest.raises(NodeUnfit, match="in use"):
        check(trial, env)
    check(trial, {**env, variable: "2"})


def test_room_and_clock(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check, "LEAST_ROOM_MIB", 1 << 40)
    monkeypatch.setattr(node_check.time, "time", lambda: 1000.0)
    with pytest.raises(NodeUnfit, match=r"has \d+ MiB left; its clock is -\d+ s off the shared disk's"):
        check(trial, {})
