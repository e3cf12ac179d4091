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


def test_without_gpus_there_is_nothing_to_ask(trial: Path) -> None:
    check(trial, {})


@pytest.mark.parametrize(
    ("text", "code", "visible", "wrong"),
    [
        ("0, 4\n1, 511", 0, "0,1", ""),
        ("0, 4", 0, "0,1", "1 GPUs of 2 are there"),
        ("0, 4\n1, 70123", 0, "0,1", "GPU 1 has 70123 MiB in use before the trial starts"),
        ("0, 70000\n1, 4\n2, 4\n3, 70000", 0, "1,2", ""),
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


def test_room_and_clock(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_check, "LEAST_ROOM_MIB", 1 << 40)
    monkeypatch.setattr(node_check.time, "time", lambda: 1000.0)
    with pytest.raises(NodeUnfit, match=r"has \d+ MiB left; its clock is -\d+ s off the shared disk's"):
        check(trial, {})
