"""What a step need not compute, left out: keys under `compute`, all of them on unless the config says otherwise.

None of it changes the loss or the pairs of a step; each is off by itself where the trial's parallelism or data do not
go with it, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from launcher.train.metrics_file import MetricsFile
from launcher.train.nemo_aligner.savings import (
    attention,
    balance,
    micro_batches,
    packing,
    reference,
    reference_key,
    response_logits,
    shared_prompt,
)
from launcher.train.nemo_aligner.savings.reference_cache import Cache, private_folder

if TYPE_CHECKING:
    from nemo_aligner.algorithms.dpo import DPOTrainer

DEFAULTS = {
    "share_prompt": True,
    "positions_per_micro_batch": "auto",
    "cut_padding": True,
    "length_multiple": None,
    "skip_prompt_logits": True,
    "cache_reference": True,
}

_EACH = "the reference policy is run for every batch"


@dataclass(frozen=True)
class Split:
    """Pairs of one kind, and which of them a trial will take."""

    pairs: Any
    batches: Any
    """A data loader of this rank's share of global batches, that is not being read yet."""
    count: int
    """Global batches that are taken; more than the loader has where there are several epochs."""


def install(config: DictConfig, trainer: DPOTrainer, splits: Mapping[str, Split], progress: MetricsFile) -> None:
    """Have `trainer` (NeMo-Aligner's DPOTrainer, ready to train) save what can be saved.

    `splits` are "train" and "validation". All ranks have to call it.
    """
    compute: dict[str, Any] = {**DEFAULTS, **(config.get("compute") or {})}
    model = trainer.model
    record: dict[str, object] = {"length_multiple": 0, "skip_prompt_logits": False, "attention": "", "positions": None}
    if _wanted(
        compute["share_prompt"], "prompts are computed twice", shared_prompt.unsupported_reason(model.cfg), progress
    ):
        multiple = _multiple(config, trainer, compute)
        way = attention.choose(config.trainer.accelerator, str(config.trainer.precision))
        record |= {"length_multiple": multiple, "attention": way.name}
        shared_prompt.install(model, multiple, way.attend)
        _order(trainer, balance.balanced)
        limit = positions(config, compute["positions_per_micro_batch"])
        record["positions"] = limit
        if limit:
            packing.install(model, limit)
        if progress.writes:
            rows = f"pairs share rows of {limit} positions" if limit else "rows are not shared"
            print(f"prompts are computed once; {rows}; attention by {way.name}", flush=True)
    else:
        _cut(config, trainer, compute, record, progress)
    if _wanted(compute["cache_reference"], _EACH, reference_key.unsupported_reason(config, model.cfg), progress):
        _cached_reference(config, trainer, splits, record, progress)


def positions(config: DictConfig, setting: int | str | None) -> int | None:
    """Positions of a row that pairs share; None where a row has a fixed number of pairs.

    `auto` stays within the memory that model.micro_batch_size may take in NeMo-Aligner. On a GPU in bf16 a row of one
    pair lets the reference be cached, which is worth more.
    """
    if setting != "auto":
        return int(setting) if setting else None
    size = int(config.model.micro_batch_size)
    if size == 1 and config.trainer.accelerator == "gpu" and str(config.trainer.precision) != "32":
        return None
    return 2 * size * int(config.model.encoder_seq_length)


def _cut(
    config: DictConfig,
    trainer: DPOTrainer,
    compute: Mapping[str, Any],
    record: dict[str, object],
    progress: MetricsFile,
) -> None:
    model = trainer.model
    if _wanted(compute["cut_padding"], "padding is computed", micro_batches.unsupported_reason(model.cfg), progress):
        multiple = micro_batches.length_multiple(model.cfg, _multiple(config, trainer, compute))
        record["length_multiple"] = multiple
        micro_batches.install(model, multiple)
        _order(trainer, micro_batches.longest_first)
    if _wanted(
        compute["skip_prompt_logits"], "prompts get logits", response_logits.unsupported_reason(model.cfg), progress
    ):
        record["skip_prompt_logits"] = True
        response_logits.install(model)


def _order(trainer: DPOTrainer, order: Callable[[Sequence[Any]], list[Any]]) -> None:
    collate = trainer.collate_fn
    trainer.collate_fn = lambda pairs, **options: collate(order(pairs), **options)


def _wanted(setting: int | None, otherwise: str, reason: str, progress: MetricsFile) -> bool:
    if setting and reason and progress.writes:
        print(f"{otherwise}: {reason}", flush=True)
    return bool(setting) and not reason


def _multiple(config: DictConfig, trainer: DPOTrainer, compute: Mapping[str, Any]) -> int:
    """Tensor cores want lengths in steps, which NeMo-Aligner's padding respects; a CPU takes them as they are."""
    if compute["length_multiple"]:
        return int(compute["length_multiple"])
    if config.trainer.accelerator == "gpu":
        return int(trainer.pad_seq_length_to_mult)
    return int(config.model.data.get("pad_length_to_multiple_of") or 1)


def _cached_reference(
    config: DictConfig,
    trainer: DPOTrainer,
    splits: Mapping[str, Split],
    record: dict[str, object],
    progress: MetricsFile,
) -> None:
    root = Path(config.paths.cache)
    described: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        progress.phase("reference", "looking for what is known")
        try:
            notes = private_folder(root / "files")
            key = reference_key.of_model(config, trainer.model.cfg, record, notes)
            data = {split: reference_key.of_pairs(config, split, notes) for split in splits}
            Cache(root / "reference", key)
            described = [(key, data)]
        except OSError as error:
            print(f"{_EACH}: paths.cache={root} cannot be used ({error.strerror})", flush=True)
    torch.distributed.broadcast_object_list(described, 0)
    if described[0] is None:
        return
    key, data = described[0]
    collate = partial(trainer.collate_fn, pad_length_to_multiple_of=trainer.pad_seq_length_to_mult)
    owner = str(Path(config.exp_manager.explicit_log_dir).absolute())
    cached = reference.Reference(trainer.model, collate, Cache(root / "reference", key), owner, progress)
    ranks = reference.data_parallel_ranks()
    wanted = []
    for name, split in splits.items():
        places = reference.places(split.batches.batch_sampler, split.count, len(split.pairs))
        wanted += reference.groups(split.pairs, places, data[name], reference.PAIRS_A_RANK * ranks)
    cached.fill(wanted, lambda so_far: setattr(trainer, "doing", so_far))
    trainer.doing = ""
