"""Logits where a response stands, and nowhere else: those of prompts and padding are masked out of every loss.

A vocabulary's logits are the largest tensors of a step, and NeMo-Aligner keeps several copies of them (log-softmax, its
exponential, a one-hot of 8 bytes an entry). Of HH-RLHF's tokens six in ten are the prompt's. The output layer is given
only the hidden states at labelled positions, and the log-probabilities go back to where they belong; elsewhere stands
0, which the losses mask as they would mask the numbers that stood there.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.tensor_parallel.utils import VocabUtility
from nemo_aligner.models.nlp.gpt import megatron_gpt_dpo_model
from nemo_aligner.utils import parallel_state
from omegaconf import DictConfig

from launcher.train.nemo_aligner.divergence import megatron_gpt

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel


def unsupported_reason(config: DictConfig) -> str:
    """Why the logits of a model config have to be computed everywhere, "" where they have not."""
    if (config.get("pipeline_model_parallel_size") or 1) > 1 or (config.get("context_parallel_size") or 1) > 1:
        return "pipeline and context parallelism split what would have to be picked from"
    if config.get("sequence_parallel"):
        return "sequence parallelism splits what would have to be picked from"
    if config.data.data_impl == "packed_jsonl":
        return "packed pairs come to the loss another way"
    return ""


def install(model: MegatronGPTDPOModel) -> None:
    """Have `model` (NeMo-Aligner's DPO model) compute logits at labelled positions only."""
    make_forward = model.get_forward_output_and_loss_func
    output_layer = megatron_gpt(model).output_layer

    def make_picking(validation_step: bool = False, logprobs_only: bool = False) -> Callable[..., object]:
        forward = make_forward(validation_step, logprobs_only=logprobs_only)

        def picking(batches: Iterator[dict[str, torch.Tensor]], *rest: object) -> Any:
            batch = next(batches)
            places = labelled(torch.cat((batch["chosen_labels"], batch["rejected_labels"])))
            with picked(output_layer, places):
                output, finish = forward(iter([batch]), *rest)
            return output, reading(finish, places)

        return picking

    model.get_forward_output_and_loss_func = make_picking


def labelled(labels: torch.Tensor) -> torch.Tensor:
    """Where [sequences, length] labels are none of -100, as indices into what Megatron has as [length x sequences].

    These indices stay the same where sequences are cut. At least one: an output layer has to have an input. Labels are
    on the CPU: a GPU would have to be waited for.
    """
    places = (labels.t().reshape(-1) > -1).nonzero()[:, 0]
    return places if len(places) else torch.zeros(1, dtype=torch.long)


@contextmanager
def picked(output_layer: Any, places: torch.Tensor) -> Iterator[None]:
    """Inside this context the output layer is given hidden states only at `places` of [length x sequences]."""
    places = places.cuda(non_blocking=True)

    def pick(layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *others = inputs
        return hidden.flatten(0, 1)[places][None], *others  # as [1, n]: torch multiplies [n, 1] n times

    hook = output_layer.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        hook.remove()


def reading(finish: Callable[..., object], labels_at: torch.Tensor) -> Callable[..., object]:
    """`finish`, a loss of NeMo-Aligner's, for logits that belong to labels at `labels_at` of [length x sequences]."""

    def finished(*args: object, **kwargs: object) -> Any:
        with _log_probabilities_at(labels_at.cuda(non_blocking=True)):
            return finish(*args, **kwargs)

    return finished


@contextmanager
def _log_probabilities_at(places: torch.Tensor) -> Iterator[None]:
    """NeMo-Aligner's losses take log-probabilities from logits by this function, found in its module by name."""
    whole = megatron_gpt_dpo_model.from_parallel_logits_to_logprobs

    def of_some(vocab_parallel_logits: torch.Tensor, target: torch.Tensor, **options: object) -> torch.Tensor:
        sequences, length = target.shape
        labels = target.t().reshape(-1)[places]
        found: torch.Tensor = LogProbability.apply(  # type: ignore[no-untyped-call]
            vocab_parallel_logits[:, 0], labels, not options["inference_only"]
        )
        everywhere = found.new_zeros(length * sequences).index_copy(0, places, found)
        return everywhere.view(length, sequences).t()

    megatron_gpt_dpo_model.from_parallel_logits_to_logprobs = of_some
    try:
        yield
    finally:
        megatron_gpt_dpo_model.from_parallel_logits_to_logprobs = whole


class LogProbability(torch.autograd.Function):
    """[n] log-softmax of [n, vocabulary / tensor-parallel ranks] logits at [n] labels; 0 where a label is -100.

    The numbers are those of NeMo-Aligner's DistributedLogprob with higher_stability, without its one-hot tensor.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, differentiate: bool) -> torch.Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        first, last = VocabUtility.vocab_range_from_per_partition_vocab_size(
            logits.shape[-1],
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        elsewhere = (labels < first) | (labels >= last)
        places = torch.where(elsewhere, 0, labels - first)[:, None]
        highest = logits.amax(-1, keepdim=True)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group=group)
        shifted = logits - highest
        total = shifted.exp().sum(-1, keepdim=True).float()
        torch.distributed.all_reduce(total, group=group)
        every = shifted.sub_(total.log_().to(shifted.dtype))
        picked = every.gather(-1, places)[:, 0].masked_fill_(elsewhere, 0.0)
        torch.distributed.all_reduce(picked, group=group)
        if differentiate:
            ctx.save_for_backward(every.exp_(), places, elsewhere)
        return picked

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        softmax, places, elsewhere = ctx.saved_tensors
        gradient = gradient[:, None]
        answer = softmax * -gradient
        return answer.scatter_add_(-1, places, gradient.masked_fill(elsewhere[:, None], 0.0)), None, None
