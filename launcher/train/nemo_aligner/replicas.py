"""A guard against ranks that train apart in silence: what ranks must have in common is compared by checksum.

Data-parallel ranks hold the same weights and add the same gradients; tensor- and pipeline-parallel ranks of one
replica work on the same pairs. When a reduction fails without an error, as NeMo's asynchronous ones did in bf16 with
gloo, each rank goes on by itself, and every metric still looks healthy. Import only after standins.install().
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from nemo_aligner.utils import parallel_state

#: Steps of a start after which the ranks compare; later they do so at every save.
FIRST_STEPS = 3


class RanksDiffer(Exception):
    """Ranks that must agree do not. The trial is not started again (launcher.job.restart_rule.REPEATABLE)."""


def compare_facts(facts: Mapping[str, object]) -> None:
    """Compare what every rank has read or decided for itself, by name; values are compared with ==.

    A config, a data file or a package on a node's own disk may be older there, and a CPU may lack the units that the
    others have. Raises RanksDiffer on all ranks.
    """
    gathered: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, dict(facts))
    for name, first in gathered[0].items():
        for rank, known in enumerate(gathered):
            if known.get(name) != first:
                raise RanksDiffer(f"{name}: rank {rank} has {known.get(name)!r}, rank 0 has {first!r}")


def compare_weights(model: torch.nn.Module, step: int, frozen: bool = False) -> None:
    """Compare the trainable weights of all data-parallel ranks, and what tensor-parallel ranks hold in common.

    With `frozen` those of the base model as well: a node may have loaded another file of the same name. Tensor-parallel
    ranks share no part of its matrices, but each keeps a copy of its norms.
    Raises RanksDiffer on all ranks. Two numbers a rank travel.
    """
    compared = [p for p in model.parameters() if p.requires_grad or frozen]
    what = f"after step {step} the {'' if frozen else 'trainable '}weights"
    copies = [p for p in compared if not getattr(p, "tensor_model_parallel", False)]
    _compare(
        (
            checksum(compared),
            parallel_state.get_data_parallel_group(with_context_parallel=True),
            f"{what} of the data-parallel ranks differ"
            + ("" if frozen else ": their gradients were not added up, or not before they were used"),
        ),
        (
            checksum(copies),
            parallel_state.get_tensor_model_parallel_group(),
            f"{what} that every tensor-parallel rank keeps a copy of differ",
        ),
    )


def compare_parts(model: torch.nn.Module) -> None:
    """Tensor-parallel ranks must hold different parts of the base model: one may have loaded another's.

    Raises RanksDiffer on all ranks. Two numbers a rank travel.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    if torch.distributed.get_world_size(group) == 1:
        return  # and no rank reads all of its weights for nothing
    parts = [
        p for n, p in model.named_parameters() if getattr(p, "tensor_model_parallel", False) and "adapter" not in n
    ]
    ranks = torch.distributed.get_process_group_ranks(group)
    first: dict[tuple[int, ...], int] = {}
    same = []
    for rank, numbers in zip(ranks, _gather(checksum(parts), group), strict=True):
        other = first.setdefault(tuple(numbers), rank)
        if other != rank:
            same.append(f"tensor-parallel ranks {other} and {rank} hold the same part of the base model")
    _raise_together(same)


def compare_batch(batch: Mapping[str, object], step: int) -> None:
    """Compare the pairs of a step between the ranks that make up one replica of the model. Raises RanksDiffer."""
    tensors = [value for _, value in sorted(batch.items()) if isinstance(value, torch.Tensor)]
    reason = f"in step {step} the ranks that share one replica of the model were given different pairs"
    _compare((checksum(tensors), parallel_state.get_model_parallel_group(), reason))


def checksum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Two int64 numbers that depend on every bit of the tensors and on the bits' places; equal for equal tensors."""
    total = torch.zeros(2, dtype=torch.int64, device=torch.cuda.current_device())
    for number, tensor in enumerate(tensors, start=1):
        data = tensor.detach().contiguous().reshape(-1)
        bits = data.view(torch.uint8) if data.dtype == torch.bool else data.view(_BITS[data.element_size()])
        for start in range(0, bits.numel(), _BLOCK):  # an embedding of 8B's size would take gigabytes as int64
            block = bits[start : start + _BLOCK].to(torch.int64)
            places = torch.arange(start + 1, start + 1 + block.numel(), dtype=torch.int64, device=block.device)
            total += torch.stack([block.sum(), (block * places).sum()]).to(total.device) * number
    return total


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 1 << 24


def _compare(*comparisons: tuple[torch.Tensor, Any, str]) -> None:
    """Each is (numbers, the group of ranks on which they must be equal, what it means where they are not)."""
    reasons = []
    for mine, group, reason in comparisons:
        ranks = torch.distributed.get_process_group_ranks(group)
        numbers = _gather(mine, group)
        different = [rank for rank, each in zip(ranks, numbers, strict=True) if each != numbers[0]]
        if different:
            reasons.append(f"{reason} (ranks {different} do not hold what rank {ranks[0]} holds)")
    _raise_together(reasons)


def _gather(mine: torch.Tensor, group: Any) -> list[list[int]]:
    """The numbers of each rank of the group."""
    gathered = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, mine, group=group)
    return [values.tolist() for values in gathered]


def _raise_together(reasons: list[str]) -> None:
    """All ranks raise, also those of groups that agree: otherwise they would wait for the others for ever."""
    failed = torch.tensor(len(reasons), device=torch.cuda.current_device())
    torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX)
    if failed.item():
        raise RanksDiffer("; ".join(reasons) or "other ranks of this trial do not agree; their logs say in what")
