"""The columns `per_prompt` of scores.json: one value for each prompt, from a policy's answers and the reference's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from launcher.evaluate import diversity, win_rate
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.instructions import following
from launcher.evaluate.judges.judge import Judge
from launcher.evaluate.win_rate import Wins

Columns = dict[str, list[float | None]]
"""One value for each prompt, in the order of the answers; None where a measure does not apply to a prompt."""


def columns(answers: Sequence[PromptAnswers], reference: Mapping[str, PromptAnswers], vocabulary: int) -> Columns:
    """Every measure that needs no judge. `reference` has the reference policy's answers by prompt id, and is empty
    where its tokens are others, so that lengths have another unit; `vocabulary` is the number of the tokenizer's
    tokens. Columns that no prompt has a value for are left out."""
    rows = [_sampled(it, vocabulary) | _followed(it) | _reference(reference.get(it.prompt_id)) for it in answers]
    values_of: Columns = {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)
    }
    sampled = [place for place, it in enumerate(answers) if it.samples]
    if sampled:
        values_of["distinct"] = [None] * len(answers)
        values = diversity.distinct_across([answers[place].tokens for place in sampled], vocabulary)
        for place, value in zip(sampled, values, strict=True):
            values_of["distinct"][place] = value
    return {name: [None if it is None else _rounded(it) for it in values] for name, values in values_of.items()}


def judged(
    judge: Judge,
    answers: Sequence[PromptAnswers],
    reference: Sequence[PromptAnswers],
    most: int | None = None,
) -> tuple[Columns, dict[str, Any]]:
    """(the columns of the win rates, `judges` of scores.json: what each comparison rests on).

    At most `most` answers of a prompt are compared; None: all. Where the judge cannot be used there are no columns, and
    `judges` has the reason.
    """
    rates: Columns = {}
    facts: dict[str, Any] = {}
    for opponent, name, wins in (
        ("reference", "win", win_rate.against_reference(judge, answers, reference, most)),
        ("chosen", "win_chosen", win_rate.against_chosen(judge, answers, most)),
    ):
        facts[opponent] = {"name": judge.name, "facts": dict(wins.judged.facts), "unusable": wins.judged.unusable}
        if wins.prompts:
            rates[name] = _placed(answers, wins, wins.rates)
            if name == "win" and (controlled := win_rate.length_controlled(wins)):
                rates["win_controlled"] = _placed(answers, wins, controlled)
    return rates, facts


def _placed(answers: Sequence[PromptAnswers], wins: Wins, values: Sequence[float]) -> list[float | None]:
    known = dict(zip(wins.prompts, values, strict=True))
    return [_rounded(known[it.prompt_id]) if it.prompt_id in known else None for it in answers]


def _sampled(answer: PromptAnswers, vocabulary: int) -> dict[str, float]:
    if not answer.samples:
        return {}
    values = {
        "length": fmean([len(tokens) for tokens in answer.tokens]),
        "unended": fmean([float(not ended) for ended in answer.samples_ended]),
        "repeated": fmean([diversity.repeated_4grams(tokens) for tokens in answer.tokens]),
        "compression": diversity.compression_ratio(answer.samples),
        "refusals": fmean([float(diversity.is_refusal(text)) for text in answer.samples]),
    }
    if answer.kl_nats:
        values["kl_own"] = fmean(answer.kl_nats)
    if len(answer.samples) > 1:
        values["distinct_input"] = diversity.distinct_ngrams(answer.tokens, vocabulary)
        values["self_bleu"] = diversity.self_bleu(answer.samples)
    return values


def _reference(answer: PromptAnswers | None) -> dict[str, float]:
    if answer is None or not answer.samples:
        return {}
    return {"reference_length": fmean([len(tokens) for tokens in answer.tokens])}


def _followed(answer: PromptAnswers) -> dict[str, float]:
    if not answer.instructions:
        return {}
    strict = following.strict(answer.greedy, answer.instructions)
    loose = following.loose(answer.greedy, answer.instructions)
    return {
        "instructions": len(strict),
        "followed": sum(strict),
        "all_followed": float(all(strict)),
        "followed_loosely": sum(loose),
        "all_followed_loosely": float(all(loose)),
    }


def _rounded(value: float) -> float:
    """To seven digits, so that the file stays small."""
    return float(f"{value:.7g}")
