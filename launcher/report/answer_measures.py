"""Measures of what the policies say, from evaluation/scores.json; docs/evaluation.md has definitions and sources.

A value belongs to a prompt and is the mean over the samples of that prompt, so that errors are over prompts: samples of
one prompt are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from launcher.report.measure import Measure, Table
from launcher.report.recorded import Pairs


def _of(
    key: str, title: str, note: str, better: Literal["higher", "lower", ""], *, column: str = "", over: str = "",
    form: str = ".3f", unit: str = "", table: Table = "prompts", chance: float | None = None, share: bool = False,
    brief: bool = False, glance: bool = False, against_beta: bool = False,
) -> Measure:  # fmt: skip
    """The mean of one column, or its sum divided by the sum of the column `over`."""
    own = column or key
    return Measure(
        key=key, title=title, note=note, better=better, form=form, unit=unit, table=table, chance=chance, share=share,
        brief=brief, glance=glance, against_beta=against_beta,
        columns=(own, over) if over else (own,),
        each_pair=lambda columns, beta: columns[own],
        sizes=_column(over) if over else None,
    )  # fmt: skip


def _column(name: str) -> Callable[[Pairs], Sequence[float]]:
    return lambda columns: columns[name]


def _reward_and_length(pairs: Pairs, beta: float | None) -> list[float]:
    """Pearson's correlation of a response's log-ratio with its length in tokens, over both responses of all pairs.

    It is returned as a value for each pair: the correlation plus the pair's influence on it, z_x z_y - r (z_x^2 +
    z_y^2) / 2 summed over its two responses (Devlin et al. 1975), so that the spread gives the error. 0 if all
    lengths, or all log-ratios, are equal. The implicit reward is beta times the log-ratio, which changes no
    correlation.
    """
    ratios = [value for side in ("chosen", "rejected") for value in pairs[f"log_ratio_{side}"]]
    lengths = [float(value) for side in ("chosen", "rejected") for value in pairs[f"tokens_{side}"]]
    count = len(ratios)
    x, y = _standardised(ratios), _standardised(lengths)
    correlation = math.fsum(a * b for a, b in zip(x, y, strict=True)) / count
    influence = [a * b - correlation * (a * a + b * b) / 2 for a, b in zip(x, y, strict=True)]
    half = count // 2
    return [correlation + (influence[place] + influence[place + half]) / 2 for place in range(half)]


def _standardised(values: Sequence[float]) -> list[float]:
    """Zeros if all are equal."""
    middle = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((it - middle) ** 2 for it in values) / len(values))
    return [(it - middle) / spread if spread else 0.0 for it in values]


ENTRIES = (
    _of("win", "win rate", "Win rate: how often the judge prefers a sampled answer to the reference policy's; 0.5 is "
        "no difference.", "higher", chance=0.5, brief=True, glance=True, against_beta=True),
    _of("win_controlled", "win rate, length-controlled", "Length-controlled: the win rate that the judge would give to "
        "answers of equal length.", "higher", chance=0.5),
    _of("win_chosen", "win rate against chosen", "Win rate against chosen: the same against the data's chosen answers.",
        "higher"),
    _of("following", "instructions followed", "Instructions followed: share of checkable instructions that the greedy "
        "answer follows, strictly.", "higher", column="followed", over="instructions", brief=True, glance=True,
        against_beta=True),
    _of("following_prompt", "prompts followed", "Prompts followed: share of prompts all of whose instructions are "
        "followed, strictly.", "higher", column="all_followed", share=True),
    _of("following_loose", "instructions followed, loosely", "Loosely: where the answer without its first or last line "
        "or without asterisks counts too.", "higher", column="followed_loosely", over="instructions"),
    _of("following_prompt_loose", "prompts followed, loosely", "", "higher", column="all_followed_loosely", share=True),
    _of("kl_own", "KL on own answers", "KL on own answers: exact KL of the next token, summed over a sampled answer.",
        "lower", form=".2f", unit="nats an answer", brief=True, glance=True, against_beta=True),
    _of("length", "length", "Length: tokens of a sampled answer, cut at the longest allowed.", "", form=".1f",
        unit="tokens"),
    _of("length_ratio", "length ratio", "Length ratio: length over that of the reference policy's answers to the same "
        "prompts.", "", column="length", over="reference_length", brief=True, glance=True, against_beta=True),
    _of("unended", "cut off", "Cut off: share of the sampled answers that did not end within the longest length.",
        "lower"),
    _of("repeated", "repeated 4-grams", "Repeated 4-grams: share of an answer's 4-grams that stand in it already.",
        "lower", glance=True, against_beta=True),
    _of("compression", "compression ratio", "Compression ratio: bytes of a prompt's sampled answers over their gzipped "
        "bytes; higher is more alike.", "lower"),
    _of("distinct_input", "distinct n-grams of a prompt", "Distinct n-grams: over those expected of random draws, n = "
        "1 to 5, among the samples of one prompt.", "higher"),
    _of("distinct", "distinct n-grams across prompts", "Across prompts: the same among one sample of each prompt.",
        "higher", brief=True, glance=True, against_beta=True),
    _of("self_bleu", "self-BLEU", "Self-BLEU: BLEU of a sample against the others of its prompt; 1: all are the same.",
        "lower"),
    _of("refusals", "refusals", "Refusals: share of the sampled answers that begin with words of refusal.", ""),
    _of("entropy", "top-10 entropy", "Top-10 entropy and mass: of the ten likeliest tokens at each token of a chosen "
        "response.", "", column="entropy_top10", unit="nats a token", table="pairs"),
    _of("mass", "top-10 mass", "", "", column="mass_top10", table="pairs"),
    Measure(
        key="reward_length", title="reward and length", form="+.3f", better="", table="pairs", chance=0.0,
        note="Reward and length: correlation of a held-out response's log-ratio with its length.",
        columns=("log_ratio_chosen", "log_ratio_rejected", "tokens_chosen", "tokens_rejected"),
        each_pair=_reward_and_length,
    ),
)  # fmt: skip
"""In the order of the tables' columns."""
