"""FLOPs of a step at Llama-3-8B's shape, by torch's counter on meta tensors: nothing is computed or stored.

LoRA of rank 32 on NeMo's four projections, the base weights frozen, as configs/model/llama3_8b.yaml has it. Each part
of a step takes FLOPs in proportion to one number of the batch, so one call a part is enough. Of attention all products
of queries and keys of a sequence are counted, though half of them are masked: so it is on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

HIDDEN, INNER, LAYERS, HEADS, GROUPS, VOCABULARY, RANK = 4096, 14336, 32, 32, 8, 128256, 32
#: Rows of the output, columns of the input: linear_qkv, linear_proj, linear_fc1 (gate and up), linear_fc2.
PROJECTIONS = (
    (HIDDEN + 2 * GROUPS * HIDDEN // HEADS, HIDDEN),
    (HIDDEN, HIDDEN),
    (2 * INNER, HIDDEN),
    (HIDDEN, INNER),
)
_SIZE = 128


@dataclass(frozen=True)
class Work:
    """What a batch gives the model."""

    positions: int = 0
    scores: int = 0
    """Queries times keys, over all sequences."""
    logits: int = 0
    """Positions that get logits."""

    def __add__(self, other: Work) -> Work:
        return Work(self.positions + other.positions, self.scores + other.scores, self.logits + other.logits)


def of_sequences(count: int, length: int) -> Work:
    """A micro batch as NeMo-Aligner has it: all sequences of one length, logits everywhere."""
    return Work(count * length, count * length**2, count * length)


def of_rows(lengths: Iterable[tuple[int, int, int]], labelled: int) -> Work:
    """Pairs as rows: lengths of the shared beginning and of the rests of chosen and rejected."""
    work = Work(logits=labelled)
    for shared, chosen, rejected in lengths:
        work += Work(shared + chosen + rejected, (shared + chosen) ** 2 + rejected * (shared + rejected))
    return work


def of_pass(work: Work, train: bool) -> float:
    """Of a forward pass, and where `train` of the backward pass to the adapters too."""
    one = _position(train), _score(train), _logit(train)
    return LAYERS * (work.positions * one[0] + work.scores * one[1]) + work.logits * one[2]


def _position(train: bool) -> float:
    """Of a layer's projections."""

    def run() -> torch.Tensor:
        sums = []
        for rows, columns in PROJECTIONS:
            into = _meta(_SIZE, columns, grad=train)
            low, high = _meta(RANK, columns, grad=train), _meta(rows, RANK, grad=train)
            sums.append((into @ _meta(rows, columns).t() + (into @ low.t()) @ high.t()).sum())
        return torch.stack(sums).sum()

    return _count(run, train) / _SIZE


def _score(train: bool) -> float:
    """Of a layer's attention, all heads."""

    def run() -> torch.Tensor:
        query, key, value = (_meta(HEADS, _SIZE, HIDDEN // HEADS, grad=train) for _ in range(3))
        return ((query @ key.transpose(1, 2)).softmax(-1) @ value).sum()

    return _count(run, train) / _SIZE**2


def _logit(train: bool) -> float:
    return _count(lambda: (_meta(_SIZE, HIDDEN, grad=train) @ _meta(VOCABULARY, HIDDEN).t()).sum(), train) / _SIZE


def _meta(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, device="meta", requires_grad=grad)


def _count(run: Callable[[], torch.Tensor], train: bool) -> float:
    with FlopCounterMode(display=False) as counter:
        answer = run()
        if train:
            answer.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())
