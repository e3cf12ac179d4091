"""Whether the reference policy's log-probabilities can be kept, so that trials share them.

The estimate before a submission and the ranks ask the same rule; it needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unsupported_reason(model: Mapping[str, Any], positions: int | str | None, gpu_in_bf16: bool) -> str:
    """Why they cannot be kept, "" where they can.

    `model` is the trial's `model` over the base model's own config, `positions` is compute.positions_per_micro_batch.
    """
    data = model["data"]
    if data["data_impl"] == "packed_jsonl":
        return "packed pairs are no rows of their own"
    if (model.get("context_parallel_size") or 1) > 1:
        return "context parallelism splits a pair's log-probabilities"
    if data.get("reset_attention_mask") or data.get("reset_position_ids"):
        return "with reset_attention_mask or reset_position_ids they depend on the pairs beside"
    for name in ("hidden_dropout", "attention_dropout", "ffn_dropout"):
        if model.get(name):
            return f"the base model's {name} makes the reference policy random"
    several = max(model["micro_batch_size"], model["dpo"]["log_prob_forward_micro_batch_size"]) > 1
    if gpu_in_bf16 and (several or positions not in ("auto", None)):
        # Policy and reference have to round alike, and a GPU's kernels are chosen by the shape of what they multiply.
        return "in bf16 a pair is rounded with those beside it; model.micro_batch_size=1 has none"
    return ""
