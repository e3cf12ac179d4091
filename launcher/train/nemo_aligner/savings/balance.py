"""Like work for data-parallel ranks: they wait for each other at every step, and their shares of a batch differ.

The sampler gives each rank pairs at random. The ranks exchange them, some kilobytes a pair, so that each has as many as
before and about as many positions as the others. A step has the same pairs, and its loss is the mean over all of them.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nemo_aligner.utils import parallel_state

from launcher.train.nemo_aligner.savings.row import share_out

Pair = dict[str, Any]


def balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """This rank's pairs of a batch after the exchange, longest first. All ranks of the data-parallel group call it."""
    shares: list[Any] = [None] * parallel_state.get_data_parallel_world_size()
    if len(shares) == 1:
        shares = [list(pairs)]
    else:
        torch.distributed.all_gather_object(shares, list(pairs), group=parallel_state.get_data_parallel_group())
    every = [pair for share in shares for pair in share]
    dealt = share_out([length(pair) for pair in every], [len(share) for share in shares])
    return [every[place] for place in dealt[parallel_state.get_data_parallel_rank()]]


def length(pair: Pair) -> int:
    """Positions of a pair as a row, as NeMo-Aligner's data set has it."""
    same = int((pair["chosen"] == pair["rejected"]).long().cumprod(0).sum())
    sides = int(pair["chosen_length"]), int(pair["rejected_length"])
    return sum(sides) - min(same, *sides)
