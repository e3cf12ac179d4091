"""What a step need not compute, left out: keys under `compute`, all of them on unless the config says otherwise.

None of it changes the loss or the pairs of a step; each is off by itself where the trial's parallelism or data do not
go with it, and says so.
"""

from __future__ import annotations

from typing import Any

from launcher.train import micro_batches, response_logits
from launcher.train.metrics import MetricsFile

DEFAULTS = {"cut_padding": True, "length_multiple": None, "skip_prompt_logits": True, "cache_reference": True}


def install(config: Any, trainer: Any, progress: MetricsFile) -> None:
    """Have `trainer` (NeMo-Aligner's DPOTrainer, ready to train) save what can be saved."""
    asked = {**DEFAULTS, **(config.get("compute") or {})}
    model = trainer.model
    if _wanted(asked["cut_padding"], "padding is computed", micro_batches.obstacle(model.cfg), progress):
        micro_batches.install(model, micro_batches.length_multiple(model.cfg, _multiple(config, trainer, asked)))
        collate = trainer.collate_fn
        trainer.collate_fn = lambda pairs, **options: collate(micro_batches.longest_first(pairs), **options)
    if _wanted(asked["skip_prompt_logits"], "prompts get logits", response_logits.obstacle(model.cfg), progress):
        response_logits.install(model)


def _wanted(asked: bool, otherwise: str, obstacle: str, progress: MetricsFile) -> bool:
    if asked and obstacle and progress.writes:
        print(f"{otherwise}: {obstacle}", flush=True)
    return asked and not obstacle


def _multiple(config: Any, trainer: Any, asked: dict[str, Any]) -> int:
    """Tensor cores want lengths in steps, which NeMo-Aligner's padding respects; a CPU takes them as they are."""
    if asked["length_multiple"]:
        return int(asked["length_multiple"])
    if config.trainer.accelerator == "gpu":
        return int(trainer.pad_seq_length_to_mult)
    return int(config.model.data.get("pad_length_to_multiple_of") or 1)
