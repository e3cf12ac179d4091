"""What is computed of one policy's answers: values a prompt and values a held-out pair, as scores.json keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launcher.evaluate import held_out
from launcher.evaluate.answers import PromptAnswers

FORMAT = 1


def of(
    answered: Sequence[PromptAnswers],
    reference: Mapping[str, PromptAnswers],
    pairs: Mapping[str, Sequence[float]] | None,
    vocabulary: int,
) -> dict[str, Any]:
    """The content of scores.json. `per_prompt` has a column a measure, a value a prompt in the order of `prompt_ids`;
    None where a prompt has no such value. `per_pair` has the columns of held_out.compare.
    """
    columns: dict[str, list[float | None]] = {name: [] for name in PER_PROMPT}
    for answer in answered:
        for name, value in PER_PROMPT.items():
            columns[name].append(value(answer, reference[answer.prompt_id]))
    correlation = held_out.reward_and_length(dict(pairs)) if pairs else None
    return {
        "format": FORMAT,
        "prompt_ids": [answer.prompt_id for answer in answered],
        "sources": [answer.source for answer in answered],
        "per_prompt": {name: values for name, values in columns.items() if any(value is not None for value in values)},
        "per_pair": dict(pairs) if pairs else {},
        "reward_length_correlation": correlation,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _length(answer: PromptAnswers) -> float | None:
    return _mean([len(tokens) for tokens in answer.tokens])


def _unended(answer: PromptAnswers) -> float | None:
    return _mean([float(not ended) for ended in answer.samples_ended])


PER_PROMPT: dict[str, Callable[[PromptAnswers, PromptAnswers], float | None]] = {
    "kl_own": lambda answer, reference: _mean(answer.kl_nats),
    "length": lambda answer, reference: _length(answer),
    "reference_length": lambda answer, reference: _length(reference),
    "unended": lambda answer, reference: _unended(answer),
}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Means over prompts, a line a policy."""
    names = [name for name in PER_PROMPT if any(name in found["per_prompt"] for found in rows.values())]
    lines = [["", *names]]
    for title, found in rows.items():
        means = [_mean([v for v in found["per_prompt"].get(name, []) if v is not None]) for name in names]
        lines.append([title, *("" if mean is None else f"{mean:.3g}" for mean in means)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) if not place else word.rjust(width) for place, (word, width) in
                  enumerate(zip(line, widths, strict=True)))
        for line in lines
    )  # fmt: skip
