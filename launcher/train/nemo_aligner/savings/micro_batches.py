"""Micro batches cut to their own length: NeMo-Aligner pads a rank's whole share of a batch to its longest pair.

`dpo_custom_collate` pads the share, and only then it is split into micro batches. Attention is causal and padding
stands on the right, so that a pair's own positions do not depend on it; labels of padding are -100, which every loss
masks. Cut are tokens, labels, positions, mask and reference log-probabilities; what comes out is as long as stock's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

Batch = dict[str, torch.Tensor]

#: What has its sequence dimension second; the mask has two, at the end.
_ALONG_TOKENS = (
    "chosen", "rejected", "chosen_labels", "rejected_labels", "position_ids",
    "ref_policy_log_probs_chosen", "ref_policy_log_probs_rejected",
)  # fmt: skip


def unsupported_reason(config: DictConfig) -> str:
    """Why micro batches of a model config cannot be cut, "" where they can."""
    if (config.get("pipeline_model_parallel_size") or 1) > 1:
        return "pipeline parallelism needs one shape for all micro batches"
    if config.data.data_impl == "packed_jsonl":
        return "packed pairs have no padding of their own"
    if config.data.get("reset_attention_mask"):
        return "with model.data.reset_attention_mask all pairs of a micro batch get the mask of its first"
    return ""


def length_multiple(config: DictConfig, wanted: int) -> int:
    """The multiple to round lengths up to: at least `wanted`, and what the model config's parallelism divides by.

    Sequence parallelism deals a sequence out to the tensor-parallel ranks; context parallelism to its own, in two parts
    each (the causal mask makes the first half of a sequence cheaper than the second).
    """
    context = config.get("context_parallel_size") or 1
    shares = (config.get("tensor_model_parallel_size") or 1) if config.get("sequence_parallel") else 1
    shares *= 2 * context if context > 1 else 1
    return math.lcm(wanted, shares)


def cut(batch: Batch, multiple: int) -> Batch:
    """A micro batch, [pairs, length] a tensor, cut to its longest side, rounded up to `multiple`. Views, no copies."""
    full = batch["chosen"].shape[1]
    longest = int(torch.maximum(batch["chosen_length"], batch["rejected_length"]).max())
    length = min(full, math.ceil(longest / multiple) * multiple)
    shorter = {key: batch[key][:, :length] for key in _ALONG_TOKENS if key in batch}
    return {**batch, **shorter, "attention_mask": batch["attention_mask"][..., :length, :length]}


def longest_first(pairs: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """A rank's share of a global batch, sorted, so that pairs of like length meet in a micro batch.

    The same pairs make the step, whose loss is their mean. Data-parallel ranks, which wait for each other at every
    micro batch, go down in length together; and memory is at its highest in the first micro batch.
    """
    return sorted(pairs, key=lambda pair: len(pair["chosen"]), reverse=True)


def install(model: MegatronGPTDPOModel, multiple: int) -> None:
    """Have `model` (NeMo-Aligner's DPO model) cut its micro batches, in training, validation and reference passes."""
    make_forward = model.get_forward_output_and_loss_func

    def make_cutting(validation_step: bool = False, logprobs_only: bool = False) -> Callable[..., object]:
        forward = make_forward(validation_step, logprobs_only=logprobs_only)

        def cutting(batches: Iterator[Batch], *rest: object) -> Any:
            batch = next(batches)
            output, finish = forward(iter([cut(batch, multiple)]), *rest)
            return output, _as_long_as(batch["chosen"].shape[1], finish) if logprobs_only else finish

        return cutting

    # On the instance: a class of our own would be named in the .nemo that NeMo saves, which others have to load.
    model.get_forward_output_and_loss_func = make_cutting


def _as_long_as(length: int, finish: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., dict[str, torch.Tensor]]:
    """NeMo-Aligner joins the micro batches' log-probabilities; the zeros put back stand where labels are -100."""

    def finished(output: torch.Tensor, non_loss_data: bool = True) -> dict[str, torch.Tensor]:
        values = finish(output, non_loss_data=non_loss_data)["logprobs"]
        return {"logprobs": torch.nn.functional.pad(values, (0, length - values.shape[1]))}

    return finished
