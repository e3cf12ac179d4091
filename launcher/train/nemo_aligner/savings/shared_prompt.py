"""A pair as one row: the prompt, which chosen and rejected share, is computed once.

NeMo-Aligner gives the model both sequences of a pair, each with the prompt. Here the model is given the row of row.py
in their place; NeMo-Aligner's own losses then find the log-probabilities where they always are. Rotary embeddings are
taken by position, and each layer's core attention (Megatron's or Transformer Engine's) leaves rows to attention.py.

Dropout is drawn for each position of a row, hence once for the prompt of both sequences, where NeMo-Aligner draws it
for each. Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig

from launcher.train.nemo_aligner.divergence import last_hidden, megatron_gpt
from launcher.train.nemo_aligner.savings import row as rows
from launcher.train.nemo_aligner.savings.attention import Attention
from launcher.train.nemo_aligner.savings.response_logits import picked, reading

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

Batch = dict[str, torch.Tensor]


def unsupported_reason(config: DictConfig) -> str:
    """Why pairs of a model config cannot be rows, "" where they can."""
    if (config.get("pipeline_model_parallel_size") or 1) > 1:
        return "pipeline parallelism needs one shape for all micro batches"
    if (config.get("context_parallel_size") or 1) > 1:
        return "context parallelism splits the sequences"
    if config.get("sequence_parallel"):
        return "sequence parallelism splits the sequences"
    if config.data.data_impl == "packed_jsonl":
        return "packed pairs come to the model another way"
    if config.data.get("reset_attention_mask") or config.data.get("reset_position_ids"):
        return "model.data.reset_attention_mask and reset_position_ids have masks of their own"
    if config.get("position_embedding_type") not in ("rope", "learned_absolute"):
        return f"position_embedding_type={config.get('position_embedding_type')}: its attention depends on distances"
    for name in ("attention_dropout", "window_size", "enable_cuda_graph", "num_moe_experts"):
        if config.get(name):
            return f"model.{name}={config.get(name)} is not known to the attention of rows"
    return ""


def install(model: MegatronGPTDPOModel, multiple: int, attend: Attention) -> None:
    """Have `model` (NeMo-Aligner's DPO model) compute micro batches as rows of a length that `multiple` divides."""
    gpt = megatron_gpt(model)
    teach(gpt, attend)
    make_forward = model.get_forward_output_and_loss_func

    def make_sharing(validation_step: bool = False, logprobs_only: bool = False) -> Callable[..., object]:
        forward = make_forward(validation_step, logprobs_only=logprobs_only)

        def sharing(batches: Iterator[Batch], module: Any, *rest: object) -> Any:
            batch = next(batches)
            row = rows.of_batch(batch, multiple)

            def with_row(**_: object) -> torch.Tensor:
                with picked(gpt.output_layer, row.places), positions(gpt, row):
                    logits: torch.Tensor = module(**inputs(row), labels=None)
                    return logits

            output, finish = forward(iter([{**batch, "attention_mask": batch["attention_mask"][:0]}]), with_row, *rest)
            return output, reading(finish, row.labels_at)

        return sharing

    # On the instance: a class of our own would be named in the .nemo that NeMo saves, which others have to load.
    model.get_forward_output_and_loss_func = make_sharing


def responses(model: MegatronGPTDPOModel, pair: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[tokens of both responses, hidden]: the output layer's input where they are predicted, chosen first."""
    row = rows.of_batch({name: pair[name][None] for name in ("chosen", "chosen_labels", "rejected", "rejected_labels")})
    with positions(megatron_gpt(model), row):
        hidden = last_hidden(model, inputs(row))[:, 0]
    rejected = row.labels_at % 2
    return hidden[row.places[rejected.argsort(stable=True)].to(hidden.device)]


def inputs(row: rows.Row) -> Batch:
    """What Megatron's GPTModel takes for a row; `teach` has taught it that such a mask is a row's lengths."""
    tokens, own = row.tokens.cuda(non_blocking=True), row.positions[None].cuda(non_blocking=True)
    # The lengths stay on the CPU, where they are read. They come as the mask since that is what recomputation keeps.
    return {"input_ids": tokens, "position_ids": own, "attention_mask": row.lengths}


def teach(gpt: GPTModel, attend: Attention) -> None:
    """Have every layer's core attention of Megatron's `gpt` leave rows to `attend`, and nothing else."""
    for layer in gpt.decoder.layers:
        core = layer.self_attention.core_attention
        core.forward = functools.partial(_attention, core.forward, attend)
    gpt.knows_rows = True


def taught(gpt: GPTModel) -> bool:
    """Whether Megatron's `gpt` can be given rows."""
    return bool(getattr(gpt, "knows_rows", False))


def _attention(
    forward: Callable[..., torch.Tensor],
    attend: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: object,
) -> torch.Tensor:
    """[n, 1, heads x d] for [n, 1, heads, d]."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return forward(query, key, value, attention_mask, **options)
    lengths = tuple((int(a), int(b), int(c)) for a, b, c in attention_mask.tolist())
    answer = attend(query[:, 0], key[:, 0], value[:, 0], lengths, query.shape[-1] ** -0.5)
    return answer.reshape(len(query), 1, -1)


@contextmanager
def positions(gpt: GPTModel, row: rows.Row) -> Iterator[None]:
    """Inside this context rotary embeddings are those of the row's positions."""
    if gpt.position_embedding_type != "rope":
        yield
        return
    places = row.positions.cuda(non_blocking=True)
    hook = gpt.rotary_pos_emb.register_forward_hook(lambda module, given, embeddings: embeddings[places])
    try:
        yield
    finally:
        hook.remove()
