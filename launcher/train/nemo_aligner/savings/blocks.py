"""Attention in a row of pairs on a CPU: products of blocks of queries with the keys that they see.

attention.py has the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from launcher.train.nemo_aligner.savings.row import Lengths

#: Queries of a block. The first sees as many keys, each further one as many more.
BLOCK = 128


def blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float) -> torch.Tensor:
    """By matrix products of blocks of queries with the keys that they see."""
    answer: torch.Tensor = _Blocks.apply(query, key, value, lengths, scale)  # type: ignore[no-untyped-call]
    return answer


@dataclass(frozen=True)
class _Block:
    """Some queries of a pair, and all keys that any of them sees."""

    queries: slice
    keys: tuple[slice, ...]
    whole: tuple[int, int, int] | None
    """The pair's lengths, where the queries are the whole pair."""

    def of_keys(self, row: torch.Tensor) -> torch.Tensor:
        """[groups, keys, d] of [n, groups, d]."""
        parts = [row[part] for part in self.keys]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)

    def add_to_keys(self, row: torch.Tensor, values: torch.Tensor) -> None:
        """Add [groups, keys, d] to [n, groups, d]."""
        sizes = [part.stop - part.start for part in self.keys]
        for part, some in zip(self.keys, values.transpose(0, 1).split(sizes), strict=True):
            row[part] += some

    def hidden(self, keys: int, dtype: torch.dtype) -> torch.Tensor:
        """[queries, keys] to be added to scores: 0 where a key is seen, -inf elsewhere."""
        if self.whole:
            return _hidden_in_pair(self.whole, dtype)
        return _hidden_at_the_end(self.queries.stop - self.queries.start, keys, dtype)


@lru_cache(maxsize=2)  # all layers of a model take the same
def _blocks(lengths: Lengths) -> tuple[_Block, ...]:
    made = []
    start = 0
    for beginning, chosen, rejected in lengths:
        middle, end = start + beginning + chosen, start + beginning + chosen + rejected
        if end - start <= BLOCK:
            made.append(_Block(slice(start, end), (slice(start, end),), (beginning, chosen, rejected)))
        else:
            for first in range(start, middle, BLOCK):
                last = min(first + BLOCK, middle)
                made.append(_Block(slice(first, last), (slice(start, last),), None))
            if rejected:
                seen_first = (slice(start, start + beginning),) if beginning else ()
                made.append(_Block(slice(middle, end), (*seen_first, slice(middle, end)), None))
        start = end
    return tuple(block for block in made if block.queries.stop > block.queries.start)


@lru_cache(maxsize=64)
def _hidden_in_pair(pair: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(sum(pair), sum(pair), dtype=dtype).masked_fill_(~pair_seen(*pair), -torch.inf)


@lru_cache(maxsize=64)
def _hidden_at_the_end(queries: int, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """Of queries that are the last of the keys."""
    seen_here = torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen_here, -torch.inf)


class _Blocks(torch.autograd.Function):
    """Heads of a group are stacked: [groups, heads of a group x queries, d] times [groups, d, keys], in one product.

    On a CPU with AMX three times as fast in bf16 as scaled_dot_product_attention, and 1.4 times in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float
    ) -> torch.Tensor:
        answer = torch.empty_like(query)
        weights = []
        with torch.autocast(query.device.type, enabled=False):
            for block in _blocks(lengths):
                stacked, keys = _stack(query[block.queries], key), block.of_keys(key)
                scores = torch.bmm(stacked, keys.transpose(1, 2)).mul_(scale)
                hidden = block.hidden(keys.shape[1], scores.dtype)
                weights.append(torch.softmax(scores.unflatten(1, (-1, len(hidden))).add_(hidden), -1).flatten(1, 2))
                _unstack(torch.bmm(weights[-1], block.of_keys(value)), answer[block.queries])
        ctx.save_for_backward(query, key, value, *weights)
        ctx.lengths, ctx.scale = lengths, scale
        return answer

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        with torch.autocast(query.device.type, enabled=False):
            for block, weight in zip(_blocks(ctx.lengths), weights, strict=True):
                stacked, outer = _stack(query[block.queries], key), _stack(gradient[block.queries], key)
                block.add_to_keys(of_value, torch.bmm(weight.transpose(1, 2), outer))
                inner = torch.bmm(outer, block.of_keys(value).transpose(1, 2))
                inner = torch._softmax_backward_data(inner, weight, -1, weight.dtype).mul_(ctx.scale)
                _unstack(torch.bmm(inner, block.of_keys(key)), of_query[block.queries])
                block.add_to_keys(of_key, torch.bmm(inner.transpose(1, 2), stacked))
        return of_query, of_key, of_value, None, None


def _stack(heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[n, heads, d] -> [groups, heads of a group x n, d]."""
    n, _, d = heads.shape
    return heads.view(n, key.shape[1], -1, d).permute(1, 2, 0, 3).reshape(key.shape[1], -1, d)


def _unstack(stacked: torch.Tensor, into: torch.Tensor) -> None:
    """The inverse, written into [n, heads, d]."""
    n, _, d = into.shape
    into.view(n, len(stacked), -1, d).copy_(stacked.view(len(stacked), -1, n, d).permute(2, 0, 1, 3))


def pair_seen(beginning: int, chosen: int, rejected: int) -> torch.Tensor:
    """[n, n] for a single pair."""
    mask = torch.ones(beginning + chosen + rejected, beginning + chosen + rejected, dtype=torch.bool).tril_()
    mask[beginning + chosen :, beginning : beginning + chosen] = False
    return mask
