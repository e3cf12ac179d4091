"""Disk space that a sweep's checkpoints need, how much is free, and whether other machines can see that disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.check import steps
from launcher.findings import Finding, Refused
from launcher.nemo import lora
from launcher.nemo.base_model import BaseModel
from launcher.trial_config.config import TrialConfig
from launcher.units import size

TIGHT = 0.8
"""A sweep that needs more than this share of the free space gets a warning: others write there as well."""
# What a checkpoint holds besides tensor data, measured: 52 kB with 64 tensors (the tiny model), 391 kB with 960
# (SmolLM2-135M).
_FILE_BYTES, _TENSOR_BYTES = 64_000, 420
_TENSORS_PER_MATRIX = 2 * 4  # LoRA's two factors: weight, fp32 main copy, two moments
_LOG_BYTES = 5_000_000  # TensorBoard's events, and the logs of NeMo and the ranks, for one trial


@dataclass(frozen=True)
class Checkpoints:
    """What a trial writes, in bytes."""

    size: int
    """One checkpoint, all ranks together."""
    count: int
    """Number of checkpoints kept: the best, and the last. A running trial may have one more: it writes first, then
    deletes.
    """
    rest: int
    """Everything else: the final .nemo, the tokenizer, logs."""

    @property
    def total(self) -> int:
        """Bytes once the trial has ended."""
        return self.size * self.count + self.rest


def checkpoints(base: BaseModel, trial: TrialConfig, plan: steps.Plan | None) -> Checkpoints | None:
    """What a trial writes; None if the .nemo's shape is unknown. `plan` is used only if every checkpoint is kept.

    Measured on NeMo 2.1.0 with LoRA: a .ckpt holds no base weights. It holds the adapters (2 bytes a parameter in
    bf16), their fp32 main copy (4) and Adam's two moments (8): 14 bytes a trained parameter. Weights in fp32 have no
    main copy: 4 + 8. The .nemo contains only the adapters. `-last` is a separate file, not a link.
    """
    if not base.shaped:
        return None
    model, kept = base.under(trial), trial.exp_manager.checkpoint_callback_params
    if trial.trains_adapters:
        tuning = trial.model.peft.lora_tuning
        trained = lora.trainable_parameters(model, tuning)
        matrices = len(tuning.target_modules) * len(tuning.layer_selection or range(model["num_layers"]))
    elif base.vocabulary is not None:
        trained, matrices = lora.parameters(model, base.vocabulary), 9 * model["num_layers"]
    else:
        return None
    weight = trial.weight_bytes
    main_copy = 4 if weight == 2 else 0
    beside = _FILE_BYTES + matrices * _TENSORS_PER_MATRIX * _TENSOR_BYTES
    best = kept.save_top_k
    if best < 0:  # all of them
        best = -(-plan.max_steps // plan.save_interval) if plan else 1
    writes_nemo = kept.save_nemo_on_train_end or kept.always_save_nemo
    return Checkpoints(
        size=trained * (weight + main_copy + 8) + beside,
        count=best + 1,
        rest=writes_nemo * (trained * weight + beside) + base.tokenizer_bytes + _LOG_BYTES,
    )


# -- room --------------------------------------------------------------------------------------------------------------


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    while not os.path.exists(folder):  # also for a name that is too long
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write there: an upper bound, since a quota is not known here."""
    room = os.statvfs(existing(folder))
    return room.f_bavail * room.f_frsize


def room(written: Sequence[Checkpoints], folder: Path, at_once: int) -> tuple[list[Finding], list[Finding]]:
    """(refusals, warnings) about the free space in `folder` for trials that write `each`, `at_once` at a time."""
    if not written:
        return [], []
    most = max(written, key=lambda it: it.total)
    need, free = sum(it.total for it in written) + min(at_once, len(written)) * most.size, free_bytes(folder)
    if need <= TIGHT * free:
        return [], []
    trials = f"{len(written)} trial{'s' * (len(written) > 1)}"
    why = (
        f"{trials} may write {size(need)} ({size(most.total)} a trial: {most.count} checkpoints of {size(most.size)}"
        f", one more while it runs, and logs), and {'only ' * (need > free)}{size(free)} are free"
    )
    remedy = "free some, set paths.runs to a larger file system, or lower save_top_k in exp_manager"
    finding = [Finding("paths.runs", str(folder), why, remedy)]
    return (finding, []) if need > free else ([], finding)


def trial_plan(trial: TrialConfig, rows: int) -> steps.Plan | None:
    """The steps of a trial with `rows` training pairs; None if they are refused (another check reports why)."""
    try:
        return steps.trial_plan(trial, rows)
    except Refused:
        return None


# -- whose disk --------------------------------------------------------------------------------------------------------

#: File systems in memory or on a disk of one machine. A file server's own disk is one too, so this is no proof.
_LOCAL = {
    "tmpfs": "memory of this machine",
    "ramfs": "memory of this machine",
    "overlay": "a container's own layer",
    **dict.fromkeys(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "squashfs"), "a disk of this machine"),
}


@dataclass(frozen=True)
class FileSystem:
    """The file system of a path, from /proc/self/mountinfo."""

    kind: str
    """nfs4, lustre, ext4, ..."""
    source: str
    point: str

    @property
    def local(self) -> str:
        """Why other machines do not see it, as text; "" if they may."""
        return _LOCAL.get(self.kind, "")

    def __str__(self) -> str:
        return f"{self.kind} ({self.source} at {self.point})"


def file_system(path: Path, mounts: str | None = None) -> FileSystem | None:
    """The file system that a path is (or would be) on. `mounts` is the text of mountinfo. None if unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:  # not Linux
            return None
    where = str(existing(path).resolve())
    nearest = None
    for line in mounts.splitlines():
        # proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE OPTIONS
        before, _, after = line.partition(" - ")
        point, kind_source = _unescaped(before.split()[4]), after.split()
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and (nearest is None or len(point) >= len(nearest.point)):  # of equal ones the later hides
            nearest = FileSystem(kind_source[0], _unescaped(kind_source[1]), point)
    return nearest


def _unescaped(text: str) -> str:
    """Undo mountinfo's escapes: it writes a space as \\040, and so on."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def not_shared(places: Iterable[tuple[str, Path]]) -> list[Finding]:
    """A warning for each file system that compute nodes probably cannot see, with all config keys that point to it."""
    on: dict[FileSystem, dict[str, Path]] = {}
    for key, path in places:
        system = file_system(path)
        if system is not None and system.local:
            on.setdefault(system, {}).setdefault(key, path)
    warnings = []
    for system, keys in on.items():
        (first, path), *others = keys.items()
        too = f" (and {', '.join(key for key, _ in others)})" if others else ""
        why = f"is on {system}{too}, {system.local}: compute nodes may not see it"
        remedy = "use the cluster's shared disk (ignore this if this machine serves it)"
        warnings.append(Finding(first, str(path), why, remedy))
    return warnings
