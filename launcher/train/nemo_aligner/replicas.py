"""A guard against ranks that train apart in silence: what ranks must have in common is compared by checksum.

Data-parallel ranks hold the same weights and add the same gradients; tensor- and pipeline-parallel ranks of one
replica work on the same pairs. When a reduction fails without an error, as NeMo's asynchronous ones did in bf16 with
gloo, each rank goes on alone, and every metric still looks healthy. Import only after standins.install().
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from nemo_aligner.utils import parallel_state

#: Steps of a start after which the ranks compare; later they do so at every save.
FIRST_STEPS = 3


class RanksDiffer(Exception):
    """Ranks that must agree do not. A trial that ends with it is not started again (launcher.job.policy.REPEATABLE)."""


def compare_weights(model: torch.nn.Module, step: int) -> None:
    """Compare the trainable weights of all data-parallel ranks, and what tensor-parallel ranks hold in common.

    Raises RanksDiffer on all ranks of a group that differ. Two numbers a rank travel.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    _compare(
        checksum(trainable),
        parallel_state.get_data_parallel_group(),
        f"after step {step} the trainable weights of the data-parallel ranks differ: their gradients were not added up",
    )
    shared = [p for p in trainable if not getattr(p, "tensor_model_parallel", False)]
    _compare(
        checksum(shared),
        parallel_state.get_tensor_model_parallel_group(),
        f"after step {step} the weights that every tensor-parallel rank keeps a copy of differ",
    )


def compare_batch(batch: Mapping[str, Any], step: int) -> None:
    """Compare the pairs of a step between the ranks that make up one replica of the model. Raises RanksDiffer."""
    tensors = [batch[key] for key in sorted(batch) if isinstance(batch[key], torch.Tensor)]
    _compare(
        checksum(tensors),
        parallel_state.get_model_parallel_group(),
        f"in step {step} the ranks that share one replica of the model were given different pairs",
    )


def checksum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Two int64 numbers that depend on every bit of the tensors and on the bits' places; equal for equal tensors."""
    total = torch.zeros(2, dtype=torch.int64, device=torch.cuda.current_device())
    for number, tensor in enumerate(tensors, start=1):
        data = tensor.detach().contiguous().reshape(-1)
        bits = data.view(torch.uint8) if data.dtype == torch.bool else data.view(_BITS[data.element_size()])
        bits = bits.to(torch.int64)
        places = torch.arange(1, bits.numel() + 1, dtype=torch.int64, device=bits.device)
        total += torch.stack([bits.sum(), (bits * places).sum()]).to(total.device) * number
    return total


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _compare(mine: torch.Tensor, group: Any, reason: str) -> None:
    size = torch.distributed.get_world_size(group)
    if size == 1:
        return
    all_of_them = [torch.empty_like(mine) for _ in range(size)]
    torch.distributed.all_gather(all_of_them, mine, group=group)
    first = all_of_them[0].tolist()
    different = [rank for rank, other in enumerate(all_of_them) if other.tolist() != first]
    if different:
        raise RanksDiffer(f"{reason} (ranks {different} of the group of {size} do not hold what rank 0 holds)")
