"""Attention in a row of pairs (row.py): a token sees its own sequence up to itself, and no other sequence.

One function, `attend`, and several ways to compute it. `plain` is the definition, with a mask over the whole row. On a
CPU, `blocks` multiplies only what is seen, pair by pair. On a GPU the kernels for sequences of different lengths take
it: queries are the sequences [beginning + chosen] and [rejected], keys and values [beginning + chosen] and
[beginning + rejected], causal from the bottom right: the last query sees all keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from launcher.train.nemo_aligner.savings.row import Lengths

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Lengths, float], torch.Tensor]
"""(query [n, heads, d], key and value [n, groups, d], the row's lengths, scale) -> [n, heads, d].

Heads are a multiple of groups; consecutive heads share a group.
"""


@dataclass(frozen=True)
class Way:
    """A way to compute attention, and what it is called in a trial's log."""

    name: str
    attend: Attention


def choose(accelerator: str, precision: str) -> Way:
    """The fastest way that works with this accelerator ("cpu" or "gpu") and precision ("32", "bf16", ...)."""
    if accelerator != "gpu":
        return Way("matrix products of each pair's visible parts", blocks)
    if precision == "32":
        return Way("torch's scaled_dot_product_attention with a mask", masked)  # the kernels below know 16 bits only
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        pass
    else:
        return Way("flash_attn_varlen_func", varlen(flash_attn_kernel(flash_attn_varlen_func)))
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return Way("torch's scaled_dot_product_attention with a mask", masked)
    return Way("torch's varlen_attn", varlen(torch_kernel(varlen_attn)))


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float) -> torch.Tensor:
    """The definition."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    scores = scores.masked_fill(~seen(lengths, str(query.device)), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float) -> torch.Tensor:
    """By torch's scaled_dot_product_attention."""
    repeats = query.shape[1] // key.shape[1]
    query, key, value = (
        part.transpose(0, 1)[None]
        for part in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
    )
    mask = seen(lengths, str(query.device))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)[0].transpose(0, 1)


@lru_cache(maxsize=2)  # all layers of a model take the same
def seen(lengths: Lengths, device: str) -> torch.Tensor:
    """[n, n] whether query (first) sees key."""
    n = sum(map(sum, lengths))
    mask = torch.zeros(n, n, dtype=torch.bool)
    start = 0
    for pair in lengths:
        end = start + sum(pair)
        mask[start:end, start:end] = pair_seen(*pair)
        start = end
    return mask.to(device)


def pair_seen(beginning: int, chosen: int, rejected: int) -> torch.Tensor:
    """[n, n] for a single pair."""
    mask = torch.ones(beginning + chosen + rejected, beginning + chosen + rejected, dtype=torch.bool).tril_()
    mask[beginning + chosen :, beginning : beginning + chosen] = False
    return mask


def blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float) -> torch.Tensor:
    """By matrix products of each pair, without the parts of the mask that are empty."""
    answer: torch.Tensor = _Blocks.apply(query, key, value, lengths, scale)  # type: ignore[no-untyped-call]
    return answer


class _Blocks(torch.autograd.Function):
    """Heads of a group are stacked: [groups, heads of a group x queries, d] times [groups, d, keys], in one product.

    Twice as fast in bf16 on a CPU with AMX as scaled_dot_product_attention there, which also has no way to leave keys
    out of the middle.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float
    ) -> torch.Tensor:
        answer = torch.empty_like(query)
        weights = []
        start = 0
        with torch.autocast(query.device.type, enabled=False):
            for pair in lengths:
                part = slice(start, start + sum(pair))
                start = part.stop
                stacked, keys, values = _stack(query[part], key), key[part].transpose(0, 1), value[part].transpose(0, 1)
                scores = torch.bmm(stacked, keys.transpose(1, 2)).unflatten(1, (-1, len(keys[0])))
                scores = scores.mul_(scale).add_(_hidden(pair, query.dtype))
                weights.append(torch.softmax(scores, -1).flatten(1, 2))
                answer[part] = _unstack(torch.bmm(weights[-1], values), query[part])
        ctx.save_for_backward(query, key, value, *weights)
        ctx.lengths, ctx.scale = lengths, scale
        return answer

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        start = 0
        with torch.autocast(query.device.type, enabled=False):
            for pair, weight in zip(ctx.lengths, weights, strict=True):
                part = slice(start, start + sum(pair))
                start = part.stop
                stacked, outer = _stack(query[part], key), _stack(gradient[part], key)
                keys, values = key[part].transpose(0, 1), value[part].transpose(0, 1)
                gradients[2][part] = torch.bmm(weight.transpose(1, 2), outer).transpose(0, 1)
                inner = torch.bmm(outer, values.transpose(1, 2))
                inner = torch._softmax_backward_data(inner, weight, -1, weight.dtype).mul_(ctx.scale)
                gradients[0][part] = _unstack(torch.bmm(inner, keys), query[part])
                gradients[1][part] = torch.bmm(inner.transpose(1, 2), stacked).transpose(0, 1)
        return *gradients, None, None


def _stack(heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[n, heads, d] -> [groups, heads of a group x n, d]."""
    n, _, d = heads.shape
    return heads.view(n, key.shape[1], -1, d).permute(1, 2, 0, 3).reshape(key.shape[1], -1, d)


def _unstack(stacked: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    n, heads, d = like.shape
    return stacked.view(len(stacked), -1, n, d).permute(2, 0, 1, 3).reshape(n, heads, d)


@lru_cache(maxsize=64)  # all layers of a model take the same
def _hidden(pair: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    """[n, n] to be added to scores: 0 where a key is seen, -inf elsewhere."""
    return torch.zeros(sum(pair), sum(pair), dtype=dtype).masked_fill_(~pair_seen(*pair), -torch.inf)


@dataclass(frozen=True)
class Sequences:
    """How kernels for sequences of different lengths are told of a row."""

    keys: torch.Tensor
    """[k] where in the row the keys stand, sequence after sequence; those of a beginning are there twice."""
    query_ends: torch.Tensor
    """[sequences + 1] int32: 0, then where each sequence of queries ends."""
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


@lru_cache(maxsize=2)  # all layers of a model take the same
def sequences(lengths: Lengths, device: str) -> Sequences:
    """Two of each pair; those without queries are left out."""
    keys, query_lengths, key_lengths = [], [], []
    start = 0
    for beginning, chosen, rejected in lengths:
        middle, end = start + beginning + chosen, start + beginning + chosen + rejected
        if beginning + chosen:
            keys.append(torch.arange(start, middle))
            query_lengths.append(beginning + chosen)
            key_lengths.append(beginning + chosen)
        if rejected:
            keys += [torch.arange(start, start + beginning), torch.arange(middle, end)]
            query_lengths.append(rejected)
            key_lengths.append(beginning + rejected)
        start = end

    def ends(parts: list[int]) -> torch.Tensor:
        return torch.tensor([0, *parts]).cumsum(0).int().to(device)

    longest = max(query_lengths), max(key_lengths)
    return Sequences(torch.cat(keys).to(device), ends(query_lengths), ends(key_lengths), *longest)


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Sequences, float], torch.Tensor]


def varlen(kernel: Kernel) -> Attention:
    """By a kernel for sequences of different lengths."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scale: float
    ) -> torch.Tensor:
        row = sequences(lengths, str(query.device))
        return kernel(query, key.index_select(0, row.keys), value.index_select(0, row.keys), row, scale)

    return attend


def flash_attn_kernel(function: Callable[..., torch.Tensor]) -> Kernel:
    """flash-attn's flash_attn_varlen_func, whose causal mask is from the bottom right since 2.1."""

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Sequences, scale: float
    ) -> torch.Tensor:
        return function(
            query,
            key,
            value,
            cu_seqlens_q=row.query_ends,
            cu_seqlens_k=row.key_ends,
            max_seqlen_q=row.longest_query,
            max_seqlen_k=row.longest_key,
            softmax_scale=scale,
            causal=True,
        )

    return kernel


def torch_kernel(function: Callable[..., Any]) -> Kernel:
    """torch.nn.attention.varlen.varlen_attn, where a window of (-1, 0) is the causal mask."""

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Sequences, scale: float
    ) -> torch.Tensor:
        answer: torch.Tensor = function(
            query,
            key,
            value,
            cu_seq_q=row.query_ends,
            cu_seq_k=row.key_ends,
            max_q=row.longest_query,
            max_k=row.longest_key,
            scale=scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return answer

    return kernel
