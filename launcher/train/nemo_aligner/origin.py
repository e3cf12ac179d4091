"""What a trial started with and has to go on with: the base model's weights, its pairs, its precision.

A checkpoint with LoRA holds the adapters alone. If a file was replaced under its name between two starts, training goes
on without an error, as no uninterrupted trial would have. Import only after standins.install().
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nemo_aligner.utils import parallel_state
from omegaconf import DictConfig

from launcher.findings import Finding, Refused
from launcher.nemo import data_files
from launcher.train.nemo_aligner.replicas import checksum

Origin = dict[str, Any]
_BASE = "pretrained_checkpoint.restore_from_path"
_WHY = "{} not what this trial has started with"
_REMEDY = "put the former one back, or start a new sweep"


def of(config: DictConfig, model: torch.nn.Module, files: Mapping[str, str]) -> Origin:
    """`files` are digests of the data files by name. Every rank has to call it, before adapters are restored."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    total = checksum(frozen or list(model.parameters()))
    torch.distributed.all_reduce(total, group=parallel_state.get_model_parallel_group())
    layout = [config.model.tensor_model_parallel_size, config.model.pipeline_model_parallel_size]
    prefix = config.model.data.data_prefix
    pairs = {split: [files[str(name)] for name in prefix[split]] for split in ("train", "validation")}
    return {"base": total.tolist(), "layout": layout, "pairs": pairs, "precision": str(config.trainer.precision)}


def check(before: Origin | None, now: Origin, config: DictConfig, own: bool) -> None:
    """Raise Refused if a restored checkpoint had another origin. `own`: it is this trial's, not one that was named.

    Checkpoints of former versions have none. With another layout of ranks the weights' checksum is another.
    """
    if before is None:
        return
    findings = []
    if before["layout"] == now["layout"] and before["base"] != now["base"]:
        path = str(config.pretrained_checkpoint.restore_from_path)
        findings.append(Finding(_BASE, path, _WHY.format("its weights are"), _REMEDY))
    for split in now["pairs"] if own else ():
        if before["pairs"][split] != now["pairs"][split]:
            names = ",".join(map(str, config.model.data.data_prefix[split]))
            findings.append(Finding(f"{data_files.KEY}.{split}", names, _WHY.format("the pairs are"), _REMEDY))
    if own and before["precision"] != now["precision"]:
        why = f"this trial has started in {before['precision']}"
        remedy = f"exclude nodes without {before['precision']} (cluster.exclude), or start a new sweep"
        findings.append(Finding("trainer.precision", now["precision"], why, remedy))
    if findings:
        raise Refused(findings)
