"""Batched generation with transformers: greedy once and some samples a prompt, from one cache of keys and values.

A prompt is read once for all of its answers. Rows of different length are padded on the left, so that every row's next
token is made from the last position; a row that has ended leaves the batch. Random numbers belong to the prompt and the
sample, not to the batch, so that an evaluation that was interrupted goes on with the answers it would have given, and
trials that are compared draw the same numbers.
"""

from __future__ import annotations

import hashlib
import inspect
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

#: Look for a stop text every so many tokens: decoding a row takes longer than making its token on a small model.
_LOOK_EVERY = 8


@dataclass(frozen=True)
class Sampling:
    """How answers are made."""

    samples: int
    """Samples a prompt, beside the greedy answer."""
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Stop:
    """What ends an answer. `texts` are cut off it."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Generated:
    """One answer."""

    tokens: list[int]
    """With the token or the stop text that ended it, where one did, and nothing after it."""
    ended: bool
    """False: it was cut off at max_tokens."""
    text: str


@dataclass
class _Row:
    """An answer in the making. `uniforms` choose its tokens; None: the most likely ones."""

    uniforms: torch.Tensor | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[str, Sequence[int]]],
    sampling: Sampling,
    stop: Stop,
    beat: Callable[[int], None] = lambda made: None,
) -> list[list[Generated]]:
    """Answer prompts, given as (id, tokens), in one batch; for each the greedy answer first, then the samples.

    `beat` is called with the number of tokens that each row has.
    """
    device = model.device
    longest = max(len(tokens) for _, tokens in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop.tokens[0]
    batch = torch.tensor([[pad] * (longest - len(tokens)) + list(tokens) for _, tokens in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for _, t in prompts], device=device)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=batch, attention_mask=mask, position_ids=places, use_cache=True, **last_logits_only(model))
    per_prompt = 1 + sampling.samples
    cache = out.past_key_values
    cache.batch_repeat_interleave(per_prompt)
    rows = [
        _Row(_uniforms(sampling, name, sample) if sample else None)
        for name, _ in prompts
        for sample in range(per_prompt)
    ]
    live = list(range(len(rows)))
    mask, place = mask.repeat_interleave(per_prompt, 0), places[:, -1].repeat_interleave(per_prompt)
    logits = out.logits[:, -1].repeat_interleave(per_prompt, 0)
    for made in range(1, sampling.max_tokens + 1):
        chosen = _choose([rows[row] for row in live], logits.float(), made - 1, sampling.temperature)
        beat(made)
        for row, token in zip(live, chosen.tolist(), strict=True):
            rows[row].tokens.append(token)
            rows[row].ended = token in stop.tokens
        if stop.texts and made % _LOOK_EVERY == 0:
            for row in live:
                rows[row].ended = rows[row].ended or _has_stop(tokenizer, rows[row].tokens, stop.texts)
        stay = [position for position, row in enumerate(live) if not rows[row].ended]
        if not stay or made == sampling.max_tokens:
            break
        if len(stay) < len(live):
            kept = torch.tensor(stay, device=device)
            cache.batch_select_indices(kept)
            mask, place, chosen = mask[kept], place[kept], chosen[kept]
            live = [live[position] for position in stay]
        mask = torch.cat([mask, mask.new_ones(len(live), 1)], -1)
        place = place + 1
        out = model(
            input_ids=chosen[:, None], attention_mask=mask, position_ids=place[:, None], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        cache, logits = out.past_key_values, out.logits[:, -1]
    done = [generated(tokenizer, row.tokens, row.ended, stop) for row in rows]
    return [done[first : first + per_prompt] for first in range(0, len(done), per_prompt)]


def last_logits_only(model: Any) -> dict[str, int]:
    """The argument by which a Llama computes logits of the last position only; transformers has renamed it."""
    names = inspect.signature(inner(model).forward).parameters
    return next(({name: 1} for name in ("logits_to_keep", "num_logits_to_keep") if name in names), {})


def sample_seed(sampling: Sampling, prompt: str, sample: int) -> int:
    """The seed of one sample, below 2 ** 56. Samples of a prompt are counted from 1."""
    seed = hashlib.blake2b(f"{sampling.seed} {prompt} {sample}".encode(), digest_size=7).digest()
    return int.from_bytes(seed, "little")


def _uniforms(sampling: Sampling, prompt: str, sample: int) -> torch.Tensor:
    """One number in [0, 1) for each token of one sample."""
    generator = torch.Generator().manual_seed(sample_seed(sampling, prompt, sample))
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)


def _choose(rows: Sequence[_Row], logits: torch.Tensor, place: int, temperature: float) -> torch.Tensor:
    """The next token of each row, from its logits [rows, vocabulary]."""
    chosen = logits.argmax(-1)
    sampled = [position for position, row in enumerate(rows) if row.uniforms is not None]
    if sampled:
        positions = torch.tensor(sampled, device=logits.device)
        sums = (logits[positions] / temperature).softmax(-1).double().cumsum(-1)
        uniforms = torch.stack([u[place] for row in rows if (u := row.uniforms) is not None]).to(logits.device)
        drawn = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)
        chosen[positions] = drawn.squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return chosen


def _has_stop(tokenizer: Any, tokens: Sequence[int], texts: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens)
    return any(stop in text for stop in texts)


def generated(tokenizer: Any, tokens: Sequence[int], ended: bool, stop: Stop) -> Generated:
    """The finished answer. Its text ends before a stop text, its tokens with it: what was generated until somebody
    looked for a stop text is no part of the answer.
    """
    length = len(tokens)
    stopped = _has_stop(tokenizer, tokens, stop.texts)
    if stopped:
        length = 1 + bisect_left(
            range(length), True, key=lambda last: _has_stop(tokenizer, tokens[: last + 1], stop.texts)
        )
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True)
    text = text[: min((place for it in stop.texts if (place := text.find(it)) >= 0), default=len(text))]
    return Generated(list(tokens[:length]), ended or stopped, text.strip())


@torch.inference_mode()
def next_token_logits(model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits that predict each token of the answers to one prompt, [answers, tokens of the longest, vocabulary].

    The prompt is read once for all answers. What stands after a shorter answer's end means nothing.
    """
    longest = max(map(len, answers))
    given = torch.tensor([list(prompt)], device=model.device)
    out = model(input_ids=given, use_cache=True, **last_logits_only(model))
    first: torch.Tensor = out.logits[:, -1:].expand(len(answers), -1, -1)
    if longest == 1:
        return first
    cache = out.past_key_values
    cache.batch_repeat_interleave(len(answers))
    rows = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in answers], device=model.device)
    rest = model(input_ids=rows[:, :-1], past_key_values=cache, use_cache=True).logits
    return torch.cat([first, rest], 1)


@torch.inference_mode()
def divergence(policy: torch.Tensor, reference: torch.Tensor) -> float:
    """The KL divergence of the policy's next token from the reference's, summed over an answer's tokens, in nats.

    Both are logits, [tokens, vocabulary]. Over answers that the policy draws, its mean is that of their log-ratio, with
    a smaller spread: for each token the mean over all that might have been drawn is taken (Amini et al. 2025, arXiv
    2504.10637).
    """
    size = min(policy.shape[-1], reference.shape[-1])  # a model may have rows of its vocabulary that stand for nothing
    own, other = (logits.float().log_softmax(-1)[:, :size] for logits in (policy, reference))
    return float((own.exp() * (own - other)).sum(-1).double().sum())


def inner(model: Any) -> Any:
    """The causal language model inside peft's wrapper, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
