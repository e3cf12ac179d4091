"""Chooses what the ranks compute on: a GPU if the node has one. It never falls back to the CPU silently.

Light to import: torch is imported inside functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from launcher import gpus
from launcher.findings import Finding, Refused
from launcher.machine import cpu_has_bf16, cpu_name
from launcher.train.ranks import Device, Ranks

#: Variables that Slurm sets in a step that has GPUs (srun(1), gres.conf(5)).
SLURM_GPUS = ("SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS")
#: The compute capability from which GPUs have bfloat16 units: Ampere.
BF16_CAPABILITY = (8, 0)


class GpuMissing(Exception):
    """GPUs are expected on this node, but CUDA offers too few or none. launcher.job then suspects the node."""


def choose_device(accelerator: str, precision: str | int, ranks: Ranks) -> Device:
    """Decide what `auto` means on this node.

    Raises GpuMissing if a GPU is needed (accelerator is "gpu", or "auto" on a node with GPUs) but CUDA does not work or
    has fewer devices than this node has ranks. Raises Refused if the GPU has no units for the requested precision.
    """
    import torch

    # Pairs differ in length, so that sizes change from step to step: fixed segments would leave gaps. CUDA's allocator
    # reads the variable once, when it is first used.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    reason = gpu_expected(os.environ) if accelerator == "auto" else "trainer.accelerator=gpu"
    answers = torch.cuda.is_available()
    if accelerator == "cpu" or not (answers or reason):
        if precision == "auto":
            precision = "bf16" if cpu_has_bf16() else "32"
        return Device("cpu", str(precision), cpu_name())
    if not answers:
        raise GpuMissing(
            f"{reason}, but CUDA does not answer: driver {_driver()}, torch {torch.__version__} built for CUDA "
            f"{torch.version.cuda}. Update the driver or install a torch for its CUDA version, give the container the "
            "GPUs (Apptainer: --nv; enroot: its nvidia hook), or write trainer.accelerator=cpu to train without"
        )
    devices = torch.cuda.device_count()
    if devices < ranks.local_world_size:
        raise GpuMissing(
            f"{ranks.local_world_size} ranks run on this node, and CUDA shows {devices} GPUs "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}). Every rank has to see all GPUs of "
            "its node: do not bind one to each task (--gpus-per-task, --gpu-bind), and set trainer.devices to what a "
            "node has"
        )
    name = torch.cuda.get_device_name()
    bf16 = torch.cuda.get_device_capability() >= BF16_CAPABILITY
    if precision == "auto":
        precision = "bf16" if bf16 else "32"
    if str(precision).startswith("bf16") and not bf16:
        why = f"{name} has no bfloat16 units (they came with Ampere, compute capability 8.0)"
        raise Refused([Finding("trainer.precision", str(precision), why, "write trainer.precision=32")])
    return Device("gpu", str(precision), name)


def gpu_expected(env: Mapping[str, str]) -> str:
    """The reason to expect a GPU here, "" if there is none. CUDA_VISIBLE_DEVICES="" or -1 hides all GPUs."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ""
    for name in SLURM_GPUS:
        if env.get(name, "0") not in ("", "0"):
            return f"Slurm gave this job GPUs ({name}={env[name]})"
    if visible is not None and "SLURM_JOB_ID" in env and visible != "NoDevFiles":
        return f"Slurm gave this job GPUs (CUDA_VISIBLE_DEVICES={visible})"
    try:
        cards = gpus.query()
    except gpus.NoAnswer as error:
        return f"this node has an NVIDIA driver that fails ({error})"
    return f"nvidia-smi shows {len(cards)} x {cards[0].name}" if cards else ""


def _driver() -> str:
    try:
        cards = gpus.query()
    except gpus.NoAnswer as error:
        return f"unknown ({error})"
    return cards[0].driver if cards else "unknown (there is no nvidia-smi)"
