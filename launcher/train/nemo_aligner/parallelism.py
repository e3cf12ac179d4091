"""Refuses combinations of parallelism and packages that cannot work, before the model is loaded."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection

from omegaconf import DictConfig

from launcher.findings import Finding, Refused


def check(config: DictConfig, gaps: Collection[str]) -> None:
    """Raise Refused if model.sequence_parallel cannot work. `gaps` is what this machine lacks (of standins.GAPS)."""
    model = config.model
    why = unsupported_reason(bool(model.get("sequence_parallel")), model.peft.peft_scheme, gaps, _te_version())
    if model.get("sequence_parallel") and model.get("tensor_model_parallel_size", 1) == 1:
        why = "it divides a sequence among tensor-parallel ranks, and model.tensor_model_parallel_size is 1"
    if why:
        raise Refused([Finding("model.sequence_parallel", "true", why, "set it to false")])


def unsupported_reason(sequence_parallel: bool, scheme: str, gaps: Collection[str], te: str) -> str:
    """Why sequence parallelism cannot work here, "" if it can. `te`: Transformer Engine's version, "" without it."""
    if not sequence_parallel:
        return ""
    if "transformer_engine" in gaps:
        return "it needs Transformer Engine, which is not usable here: PyTorch's norms do not know it"
    if scheme == "lora" and te and int(te.partition(".")[0]) >= 2:
        return f"NeMo's LoRA layers read ub_overlap_ag, which Transformer Engine {te} no longer has (1.13 has)"
    return ""


def _te_version() -> str:
    for name in ("transformer-engine", "transformer_engine"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
