"""Attention in a row of pairs (row.py): a token sees its own sequence up to itself, and no other sequence.

One function, `attend`, and several ways to compute it. `plain` is the definition, with a mask over the whole row. On a
CPU, `blocks` multiplies little more than what is seen. On a GPU the kernels for sequences of different lengths take
it: queries are the sequences [beginning + chosen] and [rejected], keys and values [beginning + chosen] and
[beginning + rejected], causal from the bottom right: the last query sees all keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from launcher.train.nemo_aligner.savings.blocks import blocks, pair_seen
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


@dataclass(frozen=True)
class Sequences:
    """What kernels for sequences of different lengths need to know about a row."""

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
            deterministic=torch.are_deterministic_algorithms_enabled(),
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
