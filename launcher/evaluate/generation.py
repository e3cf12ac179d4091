"""Batched generation with transformers: greedy once and some samples a prompt, from one cache of keys and values.

A prompt is read once for all of its answers. Rows of different length are padded on the left, so that every row's next
token is made from the last position; a row that has ended leaves the batch. Random numbers belong to the prompt and the
sample, not to the batch, so that an evaluation that was interrupted goes on with the answers it would have given, and
trials that are compared draw the same numbers.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
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
    log_probability: float
    """Of its tokens under the policy that made it, at temperature 1, in nats."""


@dataclass
class _Row:
    """An answer in the making. `uniforms` choose its tokens; None: the most likely ones."""

    uniforms: torch.Tensor | None
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
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
    done = [_generated(tokenizer, row, stop) for row in rows]
    return [done[first : first + per_prompt] for first in range(0, len(done), per_prompt)]


def last_logits_only(model: Any) -> dict[str, int]:
    """The argument by which a Llama computes logits of the last position only; transformers has renamed it."""
    names = inspect.signature(inner(model).forward).parameters
    return next(({name: 1} for name in ("logits_to_keep", "num_logits_to_keep") if name in names), {})


def _uniforms(sampling: Sampling, prompt: str, sample: int) -> torch.Tensor:
    """One number in [0, 1) for each token of one sample."""
    seed = hashlib.blake2b(f"{sampling.seed} {prompt} {sample}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    return torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)


def _choose(rows: Sequence[_Row], logits: torch.Tensor, place: int, temperature: float) -> torch.Tensor:
    """The next token of each row, from its logits [rows, vocabulary]; notes the tokens' log-probabilities."""
    chosen = logits.argmax(-1)
    sampled = [position for position, row in enumerate(rows) if row.uniforms is not None]
    if sampled:
        positions = torch.tensor(sampled, device=logits.device)
        sums = (logits[positions] / temperature).softmax(-1).double().cumsum(-1)
        uniforms = torch.stack([u[place] for row in rows if (u := row.uniforms) is not None]).to(logits.device)
        drawn = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)
        chosen[positions] = drawn.squeeze(-1).clamp(max=logits.shape[-1] - 1)
    log_probabilities = logits.gather(-1, chosen[:, None]).squeeze(-1).double() - logits.logsumexp(-1).double()
    for row, value in zip(rows, log_probabilities.tolist(), strict=True):
        row.log_probabilities.append(value)
    return chosen


def _has_stop(tokenizer: Any, tokens: Sequence[int], texts: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens)
    return any(stop in text for stop in texts)


def _generated(tokenizer: Any, row: _Row, stop: Stop) -> Generated:
    """The finished answer. Its text ends before a stop text, its tokens with it: what was generated until somebody
    looked for a stop text is no part of the answer.
    """
    length = len(row.tokens)
    stopped = _has_stop(tokenizer, row.tokens, stop.texts)
    if stopped:
        length = 1 + bisect_left(
            range(length), True, key=lambda last: _has_stop(tokenizer, row.tokens[: last + 1], stop.texts)
        )
    text = tokenizer.decode(row.tokens[:length], skip_special_tokens=True)
    text = text[: min((place for it in stop.texts if (place := text.find(it)) >= 0), default=len(text))]
    log_probability = math.fsum(row.log_probabilities[:length])
    return Generated(row.tokens[:length], row.ended or stopped, text.strip(), log_probability)


@torch.inference_mode()
def log_probabilities(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> list[float]:
    """Log-probability of each answer's tokens after its prompt's, in nats; rows are (prompt, answer), one batch."""
    sums = []
    for (_, answer), logits in zip(rows, answer_logits(model, rows, pad), strict=True):
        tokens = torch.tensor(list(answer), device=logits.device)
        values = logits.float().gather(-1, tokens[:, None]).squeeze(-1) - logits.float().logsumexp(-1)
        sums.append(float(values.double().sum()))
    return sums


def answer_logits(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Iterator[torch.Tensor]:
    """For each (prompt, answer): the logits that predict the answer's tokens, [tokens, vocabulary]."""
    whole = [[*prompt, *answer] for prompt, answer in rows]
    longest = max(map(len, whole))
    batch = torch.tensor([tokens + [pad] * (longest - len(tokens)) for tokens in whole], device=model.device)
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in whole], device=model.device)
    hidden = inner(model).model(input_ids=batch, attention_mask=mask).last_hidden_state
    for number, (prompt, answer) in enumerate(rows):
        yield inner(model).lm_head(hidden[number, len(prompt) - 1 : len(prompt) + len(answer) - 1])


def inner(model: Any) -> Any:
    """The causal language model inside peft's wrapper, with the adapter's layers in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
