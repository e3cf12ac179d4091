"""The pairs of a micro batch as one row of positions, in which a pair's shared beginning stands once.

    beginning | rest of chosen | rest of rejected | beginning of the next pair | ...

A pair's chosen and rejected sequence begin with the same tokens: the prompt, and at times the first words of the
responses. What a causal model computes there depends only on these tokens, so once is enough. The rest of the rejected
sequence goes on from the beginning, in position and in attention, as if the rest of the chosen one were not there.
Left out is what no loss depends on: padding, and tokens after the last label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Lengths = tuple[tuple[int, int, int], ...]
"""Of each pair: tokens of the beginning, of the rest of chosen, and of the rest of rejected."""


@dataclass(frozen=True)
class Row:
    """The pairs of one micro batch; all tensors are on the CPU."""

    tokens: torch.Tensor
    """[1, n]"""
    positions: torch.Tensor
    """[n] where in its own sequence each token stands."""
    lengths: torch.Tensor
    """[pairs, 3] int32, as in Lengths. Padding at the end is another pair, that has only a beginning."""
    places: torch.Tensor
    """[m] which positions of the row predict labelled tokens; one that predicts two is there twice."""
    labels_at: torch.Tensor
    """[m] where these labels stand in flattened [length, 2 x pairs] labels, chosen first; ascending."""


def of_batch(batch: Mapping[str, torch.Tensor], multiple: int = 1) -> Row:
    """The row of a collated batch's pairs, its length rounded up to `multiple`."""
    sides = [batch["chosen"], batch["rejected"]]
    labels = [batch["chosen_labels"], batch["rejected_labels"]]
    lengths = row_lengths(batch)
    pairs, width = labels[0].shape
    sequences, positions = torch.cat(sides), torch.arange(width)
    taken, starts = [], []
    start = 0
    for pair, (beginning, chosen, rejected) in enumerate(lengths.tolist()):
        first, second = pair * width, (pairs + pair) * width
        taken += [torch.arange(first, first + beginning + chosen)]
        taken += [torch.arange(second + beginning, second + beginning + rejected)]
        starts.append(start)
        start += beginning + chosen + rejected
    index = torch.cat(taken)
    labels_at = (torch.cat(labels).t().reshape(-1) > -1).nonzero()[:, 0]
    if not len(index):  # no labels at all, but a model needs an input
        lengths[0, 0] = 1
        index, labels_at = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    # A position of a rejected sequence lies further on by the rest of chosen, once the beginning is over.
    position, sequence = labels_at // (2 * pairs), labels_at % (2 * pairs)
    owner = sequence % pairs
    further = torch.where((sequence >= pairs) & (position >= lengths[owner, 0]), lengths[owner, 1], 0)
    places = torch.tensor(starts)[owner] + position + further
    tokens, own = sequences.reshape(-1)[index], positions[index % width]
    padding = math.ceil(len(index) / multiple) * multiple - len(index)
    if padding:
        tokens = torch.nn.functional.pad(tokens, (0, padding))
        own = torch.cat((own, torch.arange(padding)))
        lengths = torch.cat((lengths, torch.tensor([[padding, 0, 0]], dtype=lengths.dtype)))
    return Row(tokens[None], own, lengths, places, labels_at)


def row_lengths(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[pairs, 3] int32: for each pair of a collated batch the lengths of its three parts."""
    ends = [_end(batch[f"{side}_labels"]) for side in ("chosen", "rejected")]
    same = (batch["chosen"] == batch["rejected"]).long().cumprod(1).sum(1)
    beginning = torch.minimum(same, torch.minimum(*ends))
    return torch.stack([beginning, *(end - beginning for end in ends)], 1).int()


def deal(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Pairs of these lengths, dealt out to rows of at most `limit` positions; a longer pair has a row of its own.

    Longest first, each into the first row that has room: within 22 % of the fewest rows possible.
    """
    dealt: list[list[int]] = []
    room: list[int] = []
    for pair in sorted(range(len(lengths)), key=lambda pair: -lengths[pair]):
        place = next((place for place, left in enumerate(room) if left >= lengths[pair]), None)
        if place is None:
            dealt.append([pair])
            room.append(limit - lengths[pair])
        else:
            dealt[place].append(pair)
            room[place] -= lengths[pair]
    return dealt


def share_out(lengths: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Pairs of these lengths for ranks that take these numbers of them, with about the same sum; longest first.

    Longest first, each to the rank that has the least so far and still takes one.
    """
    shared: list[list[int]] = [[] for _ in counts]
    sums = [0] * len(counts)
    for pair in sorted(range(len(lengths)), key=lambda pair: -lengths[pair]):
        rank = min((rank for rank, count in enumerate(counts) if len(shared[rank]) < count), key=sums.__getitem__)
        shared[rank].append(pair)
        sums[rank] += lengths[pair]
    return shared


def _end(labels: torch.Tensor) -> torch.Tensor:
    """[pairs] how many positions of [pairs, length] labels there are up to the last that is none of -100."""
    return ((labels > -1) * torch.arange(1, labels.shape[1] + 1)).amax(1)
