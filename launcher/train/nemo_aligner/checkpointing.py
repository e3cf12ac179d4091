"""Checkpoints from which a trial resumes as if it had never stopped: their contents, and which are complete.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig

from launcher.findings import Finding, Refused
from launcher.sweep import checkpoints
from launcher.sweep.checkpoints import Checkpoint
from launcher.train import ownership
from launcher.train.nemo_aligner import random_state
from launcher.train.nemo_aligner.origin import Origin

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: Folder next to NeMo's checkpoints/, for checkpoints that are incomplete.
BROKEN = "broken"


class CheckpointExtras(Callback):
    """State that NeMo's checkpoints lack. Lightning saves it in them under `state_key`, and restores it."""

    state_key = "TrialState"  # the class's former name: existing checkpoints use it

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.restored_origin: Origin | None = None
        """That of the restored checkpoint."""
        self.latest: dict[str, float] = {}
        """The newest metrics, under the names that can be monitored: train_loss, val_loss, ..."""
        self.validation_owed = False
        """Whether the validation of this step was skipped in order to stop in time."""
        self.random: list[random_state.RandomState] | None = None
        """Random states of all ranks from the restored checkpoint; None if there are none, or once they are used."""

    def state_dict(self) -> dict[str, object]:
        """Every rank has to call it."""
        states = random_state.of_all_ranks()
        return {
            "latest": dict(self.latest),
            "validation_owed": self.validation_owed,
            "random": states,
            "origin": self.origin,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.latest = dict(state_dict["latest"])
        self.validation_owed = state_dict["validation_owed"]
        self.random = state_dict["random"]
        self.restored_origin = state_dict.get("origin")

    def restore_random(self) -> str:
        """Restore this rank's random states, once. Returns why they cannot be used, "" if there is no problem."""
        states, self.random = self.random, None
        ranks = torch.distributed.get_world_size()
        if states is None:
            return ""
        if len(states) != ranks:
            return f"saved by {len(states)} ranks, resumed by {ranks}: LoRA's dropout goes on with other random numbers"
        random_state.put(states[torch.distributed.get_rank()])
        return ""


def resume_point(options: DictConfig) -> Checkpoint | None:
    """The checkpoint to resume from, by exp_manager's `options`. All ranks have to call it, and get the same.

    It is the trial's last complete checkpoint, else resume_from_checkpoint. Incomplete ones are put aside. Raises
    Refused if the trial is to resume, there is no checkpoint, and resume_ignore_no_checkpoint is false.
    """
    answer: list[Checkpoint | None] = [None]
    if torch.distributed.get_rank() == 0:
        folder = Path(options.explicit_log_dir) / "checkpoints"
        checkpoint: Checkpoint | None = None
        if options.resume_if_exists:
            checkpoint = checkpoints.newest(folder)
            put_aside(folder, checkpoint)
        answer = [checkpoint or _named(options.resume_from_checkpoint)]
    torch.distributed.broadcast_object_list(answer)
    checkpoint = answer[0]
    if checkpoint is None and options.resume_if_exists and not options.resume_ignore_no_checkpoint:
        why = "there is no checkpoint to go on from"
        raise Refused([Finding("exp_manager.resume_ignore_no_checkpoint", "false", why, "set it to true")])
    return checkpoint


def put_aside(folder: Path, newest: Checkpoint | None) -> None:
    """Move incomplete checkpoints away: nothing may resume from them, and new files must get their usual names."""
    marked = {mark.name.removesuffix("-unfinished") for mark in folder.glob("*-unfinished")}  # NeMo removes these
    for path in checkpoints.all_of(folder):
        whole = checkpoints.is_whole(path, hashes=False)
        if whole and newest is not None and checkpoints.step_and_time(path) <= (newest.step, newest.written):
            continue
        print(f"{path.name} is not whole: not used", flush=True)
        checkpoints.manifest_of(path).unlink(missing_ok=True)
        if path.name.removesuffix(".ckpt") not in marked:
            for part in checkpoints.parts_of(path):
                place = folder.parent / BROKEN / part.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.is_dir():
                    shutil.rmtree(place)
                os.replace(part, place)
    for path in folder.glob("*.nemo"):
        if not checkpoints.is_whole(path):
            path.unlink()


def _named(path: str | None) -> Checkpoint | None:
    """The checkpoint that the user named; NeMo writes the counters into its name."""
    if not path:
        return None
    name = Path(path).name

    def number(key: str) -> int:
        match = re.search(rf"(?:^|-){key}=(\d+)", name)
        return int(match[1]) if match else 0

    return Checkpoint(Path(path), number("step"), number("consumed_samples"), 0.0)


def keep_whole(callback: ModelCheckpoint, counters: Callable[[], Mapping[str, int]]) -> None:
    """Make NeMo's checkpoint callback write a manifest once a checkpoint is complete, before it removes an older one.

    `counters` returns step and consumed_samples. This patches the instance, because checkpoints store the callback's
    state under the name of its class.
    """
    save, remove = callback._save_checkpoint, callback._remove_checkpoint
    trial_dir = Path(str(callback.dirpath)).parent.parent

    def save_whole(trainer: Trainer, filepath: str) -> None:
        ownership.check(trial_dir)
        if torch.distributed.get_rank() == 0:
            checkpoints.manifest_of(Path(filepath)).unlink(missing_ok=True)
        save(trainer, filepath)
        ownership.check(trial_dir)
        seal(Path(filepath), counters())

    def remove_whole(trainer: Trainer, filepath: str, **arguments: object) -> None:
        if torch.distributed.get_rank() == 0:
            checkpoints.manifest_of(Path(filepath)).unlink(missing_ok=True)
        remove(trainer, filepath, **arguments)

    callback._save_checkpoint = save_whole  # type: ignore[method-assign]
    callback._remove_checkpoint = remove_whole  # type: ignore[method-assign]


def seal(path: Path, counters: Mapping[str, int]) -> None:
    """Write the manifest of a checkpoint or .nemo, once all its files are on the disk. Every rank has to call it.

    Each rank reads a share of the files that it sees: on a network disk, the rank that wrote a file sees it first.
    """
    torch.distributed.barrier()
    seen: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(seen, checkpoints.files_of(path))
    mine = {}
    for number, name in enumerate(sorted({name for names in seen for name in names})):
        readers = [rank for rank, names in enumerate(seen) if name in names]
        if readers[number % len(readers)] == torch.distributed.get_rank():
            mine[name] = checkpoints.describe(path.parent / name)
    shares: list[dict[str, tuple[int, str]]] = [{}] * len(seen)
    torch.distributed.all_gather_object(shares, mine)
    if torch.distributed.get_rank() == 0:
        files = {name: description for share in shares for name, description in share.items()}
        checkpoints.write_manifest(path, files, counters["step"], counters["consumed_samples"])
    torch.distributed.barrier()


def drop_orphans(callback: ModelCheckpoint, kept: Checkpoint) -> None:
    """On rank 0, remove checkpoints that a killed start had replaced but not yet removed."""
    if torch.distributed.get_rank() or not callback.best_k_models:
        return
    known = {Path(str(path)).name for path in (*callback.best_k_models, callback.last_model_path, kept.path)}
    for path in checkpoints.all_of(kept.path.parent):
        if not {path.name, f"{path.name}.ckpt"} & known:
            checkpoints.manifest_of(path).unlink(missing_ok=True)
            for part in checkpoints.parts_of(path):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def save_last(callback: Any, trainer: Trainer, candidates: dict[str, torch.Tensor]) -> None:
    """Save only the checkpoint to resume from; NeMo-Aligner's custom_save also saves the best ones."""
    if isinstance(callback, ModelCheckpoint):
        callback._save_last_checkpoint(trainer, candidates)
