"""Disk that a sweep's checkpoints take, the room there is, and whether that disk is one that other machines see."""

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
"""A sweep that takes more than this share of the free space is warned of: others write there as well."""
# Beside tensors, measured: 52 kB of a checkpoint with 64 of them (the tiny model), 391 kB with 960 (SmolLM2-135M).
_FILE_BYTES, _TENSOR_BYTES = 64_000, 420
_TENSORS_PER_MATRIX = 2 * 4  # LoRA's two factors: weight, fp32 main copy, two moments
_LOG_BYTES = 5_000_000  # TensorBoard's events, NeMo's and the ranks' logs of a trial


@dataclass(frozen=True)
class Checkpoints:
    """What a trial writes, in bytes."""

    each: int
    """One checkpoint, of all its ranks."""
    count: int
    """Those kept: the best, and the last. A trial that runs may have one more: it writes before it deletes."""
    rest: int
    """The .nemo at the end, the tokenizer, logs."""

    @property
    def total(self) -> int:
        """When it has ended."""
        return self.each * self.count + self.rest


def checkpoints(base: BaseModel, trial: TrialConfig, plan: steps.Plan | None) -> Checkpoints | None:
    """None where the .nemo does not say its shape; `plan` is only asked where every checkpoint is kept.

    Measured on NeMo 2.1.0 with LoRA: a .ckpt holds no base weights, only the adapters (2 bytes a parameter in bf16),
    and of the optimizer their fp32 main copy (4) and Adam's two moments (8): 14 bytes a trained parameter. In fp32
    there is no main copy: 4 + 8. The .nemo holds the adapters alone. `-last` is a file of its own, no link.
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
    weight = 4 if trial.trainer.precision == "32" else 2
    main_copy = 4 if weight == 2 and trial.model.megatron_amp_O2 else 0
    beside = _FILE_BYTES + matrices * _TENSORS_PER_MATRIX * _TENSOR_BYTES
    best = kept.save_top_k
    if best < 0:  # all of them
        best = -(-plan.max_steps // plan.save_interval) if plan else 1
    writes_nemo = kept.save_nemo_on_train_end or kept.always_save_nemo
    return Checkpoints(
        each=trained * (weight + main_copy + 8) + beside,
        count=best + 1,
        rest=writes_nemo * (trained * weight + beside) + base.tokenizer_bytes + _LOG_BYTES,
    )


# -- room --------------------------------------------------------------------------------------------------------------


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """What this user may still write there. A quota is not known here: the file system's own room bounds it."""
    room = os.statvfs(existing(folder))
    return room.f_bavail * room.f_frsize


def room(each: Sequence[Checkpoints], folder: Path, at_once: int) -> tuple[list[Finding], list[Finding]]:
    """(refusals, warnings) about a sweep of trials that write so much into a folder, `at_once` of them at a time."""
    if not each:
        return [], []
    most = max(each, key=lambda one: one.total)
    need, free = sum(one.total for one in each) + min(at_once, len(each)) * most.each, free_bytes(folder)
    if need <= TIGHT * free:
        return [], []
    trials = f"{len(each)} trial{'s' * (len(each) > 1)}"
    why = (
        f"{trials} may write {size(need)} ({size(most.total)} a trial: {most.count} checkpoints of {size(most.each)}"
        f", one more while it runs, and logs), and {'only ' * (need > free)}{size(free)} are free"
    )
    remedy = "free some, set paths.runs to a larger file system, or lower save_top_k in exp_manager"
    finding = [Finding("paths.runs", str(folder), why, remedy)]
    return (finding, []) if need > free else ([], finding)


def trial_plan(trial: TrialConfig, rows: int) -> steps.Plan | None:
    """The steps of a trial of so many training pairs; None where they are refused, which is said elsewhere."""
    try:
        return steps.trial_plan(trial, rows)
    except Refused:
        return None


# -- whose disk --------------------------------------------------------------------------------------------------------

#: Memory and disks of one machine. A file server's own disk is among them, so this is no proof.
_LOCAL = {
    "tmpfs": "memory of this machine",
    "ramfs": "memory of this machine",
    "overlay": "a container's own layer",
    **dict.fromkeys(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "squashfs"), "a disk of this machine"),
}


@dataclass(frozen=True)
class FileSystem:
    """Where a path lies, by /proc/self/mountinfo."""

    kind: str
    """nfs4, lustre, ext4, ..."""
    source: str
    point: str

    @property
    def local(self) -> str:
        """In words what makes it one that other machines do not see; "" where they may."""
        return _LOCAL.get(self.kind, "")

    def __str__(self) -> str:
        return f"{self.kind} ({self.source} at {self.point})"


def file_system(path: Path, mounts: str | None = None) -> FileSystem | None:
    """The one a path lies on (or would); `mounts` is the text of mountinfo. None where the system does not say."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:  # not Linux
            return None
    where = str(existing(path).resolve())
    found = None
    for line in mounts.splitlines():
        # proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE OPTIONS
        before, _, after = line.partition(" - ")
        point, kind_source = _unescaped(before.split()[4]), after.split()
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= len(found.point)):  # of equal ones, the later lies on top
            found = FileSystem(kind_source[0], _unescaped(kind_source[1]), point)
    return found


def _unescaped(text: str) -> str:
    """mountinfo writes a blank as \\040, and so on."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def not_shared(places: Iterable[tuple[str, Path]]) -> list[Finding]:
    """A warning for each file system that compute nodes will probably not see, with all the keys that lead to it."""
    on: dict[FileSystem, dict[str, Path]] = {}
    for key, path in places:
        system = file_system(path)
        if system is not None and system.local:
            on.setdefault(system, {}).setdefault(key, path)
    found = []
    for system, keys in on.items():
        (first, path), *others = keys.items()
        too = f" (and {', '.join(key for key, _ in others)})" if others else ""
        why = f"lies on {system}{too}, {system.local}: compute nodes may not see it"
        remedy = "use the cluster's shared disk (if this machine serves it, all is well)"
        found.append(Finding(first, str(path), why, remedy))
    return found
