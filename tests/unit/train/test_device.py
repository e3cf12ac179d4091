"""What a rank computes on: where a node has GPUs, `auto` never means its CPU."""

from __future__ import annotations

import os

import pytest

from launcher import gpus
from launcher.findings import Refused
from launcher.train.device import GpuMissing, choose_device, gpu_expected
from launcher.train.ranks import Ranks

torch = pytest.importorskip("torch")

A100 = gpus.Gpu("NVIDIA A100", 80, "535.1", 8.0)
ONE = Ranks(0, 0, 1, 1)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch):
    """node(devices, cards=(), capability=(9, 0), **env): what CUDA shows, what nvidia-smi shows, what Slurm set."""

    def make(devices: int, cards=(), capability=(9, 0), **env: str) -> None:
        for name in ("SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(gpus, "query", lambda: list(cards))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)

    return make


def test_auto_is_the_cpu_where_nothing_speaks_of_gpus(node) -> None:
    node(0)
    assert choose_device("auto", "32", ONE).accelerator == "cpu"


def test_auto_is_the_gpu_in_bf16(node, monkeypatch: pytest.MonkeyPatch) -> None:
    node(1, [A100])
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    device = choose_device("auto", "auto", ONE)
    assert (device.accelerator, device.precision) == ("gpu", "bf16")
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"  # sizes change with pairs' lengths


@pytest.mark.parametrize(
    "env, cards",
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, ()),
        ({"SLURM_STEP_GPUS": "0,1"}, ()),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1"}, ()),
        ({}, [A100]),
    ],
    ids=["SLURM_GPUS_ON_NODE", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "nvidia-smi"],
)
def test_auto_never_falls_back_to_the_cpu_where_there_are_gpus(node, env, cards) -> None:
    node(0, cards, **env)
    with pytest.raises(GpuMissing) as error:
        choose_device("auto", "auto", ONE)
    message = str(error.value)
    assert str(torch.version.cuda) in message and "driver" in message and "trainer.accelerator=cpu" in message
    assert (list(env) or ["nvidia-smi"])[-1] in message
    assert choose_device("cpu", "32", ONE).accelerator == "cpu"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_expected(node, hidden: str) -> None:
    node(0, [A100], SLURM_GPUS_ON_NODE="1", CUDA_VISIBLE_DEVICES=hidden)
    assert choose_device("auto", "32", ONE).accelerator == "cpu"


def test_a_driver_that_fails_is_a_gpu_that_is_missing(node, monkeypatch: pytest.MonkeyPatch) -> None:
    node(0)

    def fail() -> list[gpus.Gpu]:
        raise gpus.NoAnswer("nvidia-smi: version mismatch")

    monkeypatch.setattr(gpus, "query", fail)
    with pytest.raises(GpuMissing, match="version mismatch"):
        choose_device("auto", "auto", ONE)


def test_a_gpu_that_is_asked_for_and_missing(node) -> None:
    node(0)
    with pytest.raises(GpuMissing, match="trainer.accelerator=gpu, but CUDA does not answer"):
        choose_device("gpu", "auto", ONE)


def test_fewer_devices_than_ranks(node) -> None:
    node(1, [A100], CUDA_VISIBLE_DEVICES="0")
    with pytest.raises(GpuMissing, match="4 ranks run on this node, and CUDA shows 1 GPUs .*--gpus-per-task"):
        choose_device("auto", "auto", Ranks(0, 0, 8, 4))


def test_bf16_only_where_the_gpu_has_it(node) -> None:
    node(1, capability=(7, 0))
    assert choose_device("auto", "auto", ONE).precision == "32"
    for precision in ("bf16", "bf16-mixed"):
        with pytest.raises(Refused, match="trainer.precision=32"):
            choose_device("auto", precision, ONE)


def test_the_reason_names_no_node_so_that_a_second_node_with_it_acquits_the_first(node) -> None:
    import socket

    assert socket.gethostname() not in gpu_expected({"SLURM_GPUS_ON_NODE": "8", "SLURMD_NODENAME": "n1"})
