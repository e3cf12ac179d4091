"""Figures with their standard errors. Pure arithmetic.

What NeMo-Aligner logs are means alone, so that an error is either exact, from the values of each pair that the
evaluation keeps, or at most what the one standard deviation that is logged allows
(`rewards_all_std`, of chosen and rejected log-ratios together).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Columns = Mapping[str, Sequence[float]]
"""The evaluation's `per_pair`: sums over a response, a value a pair."""


@dataclass(frozen=True)
class Figure:
    """A mean over held-out pairs."""

    value: float
    error: float | None = None
    """Standard error over the pairs; None where it cannot be known."""
    at_most: bool = False
    """Whether `error` is an upper bound only."""
    pairs: int | None = None
    paired: bool = False
    """Whether it is a difference of two trials, taken pair by pair."""


def mean(values: Sequence[float]) -> Figure:
    """Mean and its standard error (sample standard deviation / sqrt n)."""
    n = len(values)
    middle = math.fsum(values) / n
    if n < 2:
        return Figure(middle, pairs=n)
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (n - 1))
    return Figure(middle, spread / math.sqrt(n), pairs=n)


def pm(value: float, error: float | None, form: str, at_most: bool = False) -> str:
    """`0.625 ± 0.086`: the error with two digits, the value with `form`'s decimals, or as many as the error has."""
    if error is None or not math.isfinite(error):
        return format(value, form)
    places = 2 if error == 0 else min(9, max(0, 1 - math.floor(math.log10(error))))
    sign, decimals = form.partition(".")[0], int(form.partition(".")[2].rstrip("f"))
    return f"{value:{sign}.{max(places, decimals)}f} ± {'≤ ' if at_most else ''}{error:.{places}f}"


def columns(evaluation: Mapping[str, Any] | None) -> dict[str, list[float]] | None:
    """`per_pair` of an evaluation; None where there is none, or none that is whole."""
    found = (evaluation or {}).get("per_pair")
    names = ("log_ratio_chosen", "log_ratio_rejected", "kl_chosen", "kl_rejected", "tokens_chosen", "tokens_rejected")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in names):
        return None
    if len({len(found[name]) for name in names}) != 1 or not found["kl_chosen"]:
        return None
    if any(not isinstance(value, (int, float)) or not math.isfinite(value) for name in names for value in found[name]):
        return None
    return {name: [float(value) for value in found[name]] for name in names}


def each_pair(measure: str, pairs: Columns, beta: float) -> list[float]:
    """A measure's value for every pair, such that the mean over the pairs is the measure (`kl` has no such values).

    `drift` is the mean of the sizes of the two mean log-ratios, so that each counts with the sign of its mean.
    """
    both = list(zip(pairs["log_ratio_chosen"], pairs["log_ratio_rejected"], strict=True))
    if measure == "accuracy":
        return [float(chosen > rejected) for chosen, rejected in both]
    if measure == "loss":
        return [_softplus(-beta * (chosen - rejected)) for chosen, rejected in both]
    if measure == "margin":
        return [beta * (chosen - rejected) for chosen, rejected in both]
    signs = [math.copysign(1.0, math.fsum(pairs[name])) for name in ("log_ratio_chosen", "log_ratio_rejected")]
    return [(signs[0] * chosen + signs[1] * rejected) / 2 for chosen, rejected in both]


def difference(measure: str, one: Columns, other: Columns, betas: tuple[float, float]) -> Figure | None:
    """Figure of one trial less the other's, on the same pairs; None where the pairs are not the same.

    Paired: what makes a pair easy or hard for both drops out of the error.
    """
    if any(list(one[name]) != list(other[name]) for name in ("tokens_chosen", "tokens_rejected")):
        return None
    if measure == "kl":
        sums = [
            a + b - c - d
            for a, b, c, d in zip(
                one["kl_chosen"], one["kl_rejected"], other["kl_chosen"], other["kl_rejected"], strict=True
            )
        ]
        return replace(per_token(sums, _tokens(one)), paired=True)
    values = [
        a - b for a, b in zip(each_pair(measure, one, betas[0]), each_pair(measure, other, betas[1]), strict=True)
    ]
    found = mean(values)
    if measure == "accuracy":
        found = replace(found, error=_matched_error(values.count(1.0), values.count(-1.0), len(values)))
    return replace(found, paired=True)


def _matched_error(gained: int, lost: int, pairs: int) -> float:
    """Standard error of a difference of two shares of the same pairs, not 0 where both are right on the same ones.

    Half a pair is added to each of the four cells (Agresti and Min 2005, Statistics in Medicine 24).
    """
    up, down, all_pairs = gained + 0.5, lost + 0.5, pairs + 2
    return math.sqrt(up + down - (up - down) ** 2 / all_pairs) / all_pairs


def kl(pairs: Columns) -> Figure:
    """KL(policy || reference) in nats a token, over both responses."""
    return per_token([a + b for a, b in zip(pairs["kl_chosen"], pairs["kl_rejected"], strict=True)], _tokens(pairs))


def per_token(sums: Sequence[float], tokens: Sequence[float]) -> Figure:
    """Mean over all tokens from sums over each pair's, the pair being the unit (Cochran 1977, eq. 6.9)."""
    n, size = len(sums), math.fsum(tokens)
    ratio = math.fsum(sums) / size
    if n < 2:
        return Figure(ratio, pairs=n)
    squares = math.fsum((total - ratio * length) ** 2 for total, length in zip(sums, tokens, strict=True))
    return Figure(ratio, math.sqrt(n * squares / (n - 1)) / size, pairs=n)


def _tokens(pairs: Columns) -> list[float]:
    return [a + b for a, b in zip(pairs["tokens_chosen"], pairs["tokens_rejected"], strict=True)]


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))
