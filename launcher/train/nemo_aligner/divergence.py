"""The exact divergence of the policy from the reference policy, under given responses.

At every response token it compares the whole distributions, not only the probability of the actual token:
KL(policy || reference) = sum over the vocabulary of p (log p - log q), in nats. The logits are never all in memory: the
model returns its last hidden states, and the code goes through the vocabulary in blocks with running sums, as in online
softmax (Milakov & Gimelshein 2018, arXiv 1805.02867), in fp32 for any model precision. It needs tokens x BLOCK floats.

With tensor parallelism each rank handles its part of the vocabulary, and the sums are combined. Import only after
launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from nemo.collections.nlp.modules.common.megatron.utils import get_ltor_masks_and_position_ids
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.utils import adapter_control, cpu_weight_swap

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

#: Rows of the output layer multiplied at once.
BLOCK = 8192
#: Hidden states compared at once: with BLOCK, 2 x 32 MiB of fp32 logits, however long the responses are.
TOKENS = 1024


@dataclass(frozen=True)
class Divergence:
    """Per token, fp32, on the model's device; the same on all ranks of a tensor-parallel group."""

    kl: torch.Tensor
    """[n] KL(policy || reference) in nats; at least 0, apart from rounding."""
    log_ratio: torch.Tensor
    """[n] log p - log q of the actual token, in nats."""


def reference(model: MegatronGPTDPOModel) -> AbstractContextManager[None]:
    """Inside this context `model` is the reference policy, as in NeMo-Aligner: adapters off, or weights swapped in."""
    if model.use_peft and model.ref_policy_state_dict is None:
        off: AbstractContextManager[None] = adapter_control(model)
        return off
    swap: AbstractContextManager[None] = cpu_weight_swap(
        model, model.ref_policy_state_dict, megatron_amp_O2=model.megatron_amp_O2
    )
    return swap


def hidden_states(model: MegatronGPTDPOModel, tokens: torch.Tensor) -> torch.Tensor:
    """The output layer's input, [batch, length, hidden], for `tokens` [batch, length], padded on the right."""
    length = tokens.shape[1]
    parallel = parallel_state.get_tensor_model_parallel_world_size() if model.cfg.get("sequence_parallel") else 1
    if length % parallel:  # sequence parallelism needs equal parts
        tokens = torch.nn.functional.pad(tokens, (0, parallel - length % parallel))
    tokens = tokens.cuda()
    mask, _, positions = get_ltor_masks_and_position_ids(tokens, model.tokenizer.eos_id, False, False, False)
    hidden = last_hidden(model, {"input_ids": tokens, "position_ids": positions, "attention_mask": mask[:1]})
    if parallel > 1:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return hidden.transpose(0, 1)[:, :length]


def last_hidden(model: MegatronGPTDPOModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output layer's input as Megatron has it, [length, sequences, hidden], for what its GPTModel takes."""

    def forward(batches: Iterator[dict[str, torch.Tensor]], module: Any, *_: object) -> tuple[torch.Tensor, Any]:
        return module(**next(batches), labels=None), lambda output, non_loss_data=True: output

    with _without_output_layer(model), torch.no_grad():
        # Use Megatron's schedule: it sets autocast as in training.
        (hidden,) = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter([batch]),
            model=model.model,
            num_microbatches=1,
            forward_only=True,
            seq_length=batch["input_ids"].shape[1],
            micro_batch_size=batch["input_ids"].shape[0],
            collect_non_loss_data=True,
        )
    last: torch.Tensor = hidden
    return last


def output_weight(model: MegatronGPTDPOModel) -> torch.Tensor:
    """[vocabulary / tensor-parallel ranks, hidden]: this rank's rows of the output layer."""
    gpt = megatron_gpt(model)
    shared = gpt.share_embeddings_and_output_weights
    weight: torch.Tensor = gpt.shared_embedding_or_output_weight() if shared else gpt.output_layer.weight
    return weight.detach()


def compare(
    policy: torch.Tensor, base: torch.Tensor, labels: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]
) -> Divergence:
    """Divergence at [n, hidden] states of policy and reference; `labels` [n] are the tokens that came next.

    `weights` are this rank's rows of both output layers; the same tensor twice if the output layer is not trained.
    """
    parts = [
        _compare(policy[start : start + TOKENS], base[start : start + TOKENS], labels[start : start + TOKENS], weights)
        for start in range(0, len(labels), TOKENS)
    ]
    return Divergence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def most_likely(model: MegatronGPTDPOModel, hidden: torch.Tensor) -> torch.Tensor:
    """[n] the token with the highest logit at [n, hidden] states; of equal ones, the token with the lowest id."""
    weight = output_weight(model)
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    token = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    first = parallel_state.get_tensor_model_parallel_rank() * len(weight)
    for start in range(0, len(weight), BLOCK):
        top, place = (hidden.float() @ weight[start : start + BLOCK].float().T).max(-1)
        token = torch.where(top > best, first + start + place, token)
        best = torch.maximum(best, top)
    highest = _joined(best.clone(), torch.distributed.ReduceOp.MAX)
    token = torch.where(best == highest, token, torch.iinfo(torch.long).max)
    return _joined(token, torch.distributed.ReduceOp.MIN)


def _compare(
    policy: torch.Tensor, base: torch.Tensor, labels: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(weights[0])
    first = parallel_state.get_tensor_model_parallel_rank() * rows
    labels = labels.to(policy.device) - first
    policy, base = policy.float(), base.float()
    zero = torch.zeros(len(labels), device=policy.device)
    highest_p, highest_q = zero - torch.inf, zero - torch.inf
    # Sums over the vocabulary so far: exp(z_p - highest_p), the same of q, exp(z_p - highest_p) (z_p - z_q).
    sum_p, sum_q, weighted, taken = zero, zero, zero, zero
    for start in range(0, rows, BLOCK):
        p = policy @ weights[0][start : start + BLOCK].float().T
        q = base @ weights[1][start : start + BLOCK].float().T
        top_p, top_q = torch.maximum(highest_p, p.amax(-1)), torch.maximum(highest_q, q.amax(-1))
        here = (labels >= start) & (labels < start + p.shape[1])
        place = (labels - start).clamp(0, p.shape[1] - 1)[:, None]
        difference = p - q
        taken = torch.where(here, difference.gather(1, place)[:, 0], taken)
        share = p.sub_(top_p[:, None]).exp_()
        shrink = (highest_p - top_p).exp()
        sum_p = sum_p * shrink + share.sum(-1)
        weighted = weighted * shrink + (share * difference).sum(-1)
        sum_q = sum_q * (highest_q - top_q).exp() + q.sub_(top_q[:, None]).exp_().sum(-1)
        highest_p, highest_q = top_p, top_q
    top_p = _joined(highest_p.clone(), torch.distributed.ReduceOp.MAX)
    top_q = _joined(highest_q.clone(), torch.distributed.ReduceOp.MAX)
    shrink = (highest_p - top_p).exp()
    sums = torch.stack([sum_p * shrink, weighted * shrink, sum_q * (highest_q - top_q).exp(), taken])
    sum_p, weighted, sum_q, taken = _joined(sums, torch.distributed.ReduceOp.SUM)
    normaliser = top_p + sum_p.log() - top_q - sum_q.log()  # log Z_p - log Z_q
    return weighted / sum_p - normaliser, taken - normaliser


def _joined(values: torch.Tensor, operation: Any) -> torch.Tensor:
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        torch.distributed.all_reduce(values, operation, group=parallel_state.get_tensor_model_parallel_group())
    return values


@contextmanager
def _without_output_layer(model: MegatronGPTDPOModel) -> Iterator[None]:
    """Make the model return hidden states, like an earlier pipeline stage; the decoder still applies its final norm."""
    gpt = megatron_gpt(model)
    gpt.post_process = False
    try:
        yield
    finally:
        gpt.post_process = True


def megatron_gpt(model: MegatronGPTDPOModel) -> GPTModel:
    """Megatron's GPTModel inside NeMo's wrappers (a list of one, mixed precision, data parallelism)."""
    module = model.model[0] if isinstance(model.model, list) else model.model
    while hasattr(module, "module"):
        module = module.module
    return module
