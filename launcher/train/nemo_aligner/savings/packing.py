"""Rows of as many pairs as fit into a number of positions, in place of micro batches of a fixed number of pairs.

Pairs of real data differ in length by factors. A fixed number of them leaves a GPU idle where they are short, and must
be small enough for the longest. Here the number of positions of a row is bounded, which bounds its memory, and the
pairs are dealt out to rows without padding between them. The step has the same pairs with the same weights: a row's
loss, which NeMo-Aligner takes as the mean over its pairs, counts by their number. Needs shared_prompt.install.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from nemo_aligner.models.nlp.gpt import megatron_gpt_dpo_model
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.train_utils import set_sync_funcs

from launcher.train.nemo_aligner.savings import row as rows

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

Batch = dict[str, torch.Tensor]

#: NeMo-Aligner's names for the losses of a micro batch, and for them as metrics.
_LOSSES = {"avg": "loss", "avg_sft_loss": "sft_loss", "avg_preference_loss": "preference_loss", "acc": "acc"}


def install(model: MegatronGPTDPOModel, limit: int) -> None:
    """Have `model` (NeMo-Aligner's DPO model) compute its batches in rows of at most `limit` positions."""
    # On the instance: a class of our own would be named in the .nemo that NeMo saves, which others have to load.
    model.get_logprob_batch = lambda batch: _log_probabilities(model, batch, limit)
    model.get_loss_and_metrics = lambda batch, forward_only: _loss_and_metrics(model, batch, forward_only, limit)


@torch.no_grad()
def _log_probabilities(model: MegatronGPTDPOModel, batch: Batch, limit: int) -> torch.Tensor:
    """As NeMo-Aligner's get_logprob_batch: [2 x pairs, length], chosen first."""
    dealt = _deal(batch, limit)
    found = _run(model, batch, dealt, model.get_forward_output_and_loss_func(logprobs_only=True), True, True)
    pairs = len(batch["chosen"])
    answer = found[0]["logprobs"].new_zeros(2 * pairs, batch["chosen"].shape[1])
    for mine, part in zip(dealt, found, strict=True):
        answer[mine + [pairs + pair for pair in mine]] = part["logprobs"]
    return answer


def _loss_and_metrics(
    model: MegatronGPTDPOModel, batch: Batch, forward_only: bool, limit: int
) -> tuple[float, dict[str, float]]:
    """As NeMo-Aligner's get_loss_and_metrics, whose collectives for every micro batch are done once for all."""
    dealt, pairs = _deal(batch, limit), len(batch["chosen"])
    make = model.get_forward_output_and_loss_func(forward_only, logprobs_only=False)
    sizes = iter(dealt)

    def weighted(batches: Iterator[Batch], *rest: object) -> Any:
        output, finish = make(batches, *rest)
        # Megatron's schedule divides by the number of micro batches.
        weight = len(next(sizes)) * len(dealt) / pairs

        def finished(*args: object) -> Any:
            with _without_collectives(model):
                loss, found = finish(*args)
            return loss * weight, found

        return output, finished

    found = _run(model, batch, dealt, weighted, forward_only, False)
    weights = torch.tensor([float(len(mine)) for mine in dealt])
    sums = [(torch.stack([part[name].reshape(()).float().cpu() for part in found]) * weights).sum() for name in _LOSSES]
    rewards = [torch.cat([part[name].float().cpu() for part in found]) for name in ("out_chosen", "out_rejected")]
    mine = torch.cat([torch.stack(sums), *rewards]).to(torch.cuda.current_device())
    shares = [torch.empty_like(mine) for _ in range(parallel_state.get_data_parallel_world_size())]
    torch.distributed.all_gather(shares, mine, group=parallel_state.get_data_parallel_group())
    whole = torch.stack(shares)
    means = whole[:, : len(_LOSSES)].sum(0) / (pairs * len(shares))
    metrics = {name: float(value) for name, value in zip(_LOSSES.values(), means, strict=True)}
    chosen, rejected = whole[:, len(_LOSSES) :].split(pairs, 1)
    every = torch.cat((chosen, rejected), 1)
    metrics["rewards_chosen_mean"], metrics["rewards_rejected_mean"] = float(chosen.mean()), float(rejected.mean())
    metrics["rewards_all_mean"], metrics["rewards_all_std"] = float(every.mean()), float(every.std())
    return metrics["loss"], metrics


def _deal(batch: Batch, limit: int) -> list[list[int]]:
    return rows.deal(rows.row_lengths(batch).sum(1).tolist(), limit)


def _run(
    model: MegatronGPTDPOModel,
    batch: Batch,
    dealt: Sequence[list[int]],
    step: Callable[..., object],
    forward_only: bool,
    values: bool,
) -> list[dict[str, torch.Tensor]]:
    """What Megatron's schedule collects of the rows; `values` instead of losses."""
    set_sync_funcs(model, forward_only)
    collected: list[dict[str, torch.Tensor]] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([{name: column[mine] for name, column in batch.items()} for mine in dealt]),
        model=model.model,
        num_microbatches=len(dealt),
        forward_only=forward_only,
        seq_length=batch["chosen"].shape[1],
        micro_batch_size=1,
        collect_non_loss_data=values,
    )
    return collected


@contextmanager
def _without_collectives(model: MegatronGPTDPOModel) -> Iterator[None]:
    """NeMo-Aligner's loss of a micro batch, without what it asks the other ranks, which may have fewer rows."""
    average = megatron_gpt_dpo_model.average_losses_across_data_parallel_group

    @torch.no_grad()
    def own(
        values: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, *rest: object, **options: object
    ) -> Any:
        return model.split_output_tensor(
            model.get_reduced_masked_logps(values.detach() - reference, labels, *rest, **options)
        )

    megatron_gpt_dpo_model.average_losses_across_data_parallel_group = lambda losses: [loss.detach() for loss in losses]
    model.gather_and_split_rewards = own
    try:
        yield
    finally:
        megatron_gpt_dpo_model.average_losses_across_data_parallel_group = average
        del model.gather_and_split_rewards
