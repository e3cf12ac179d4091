"""Estimates with their standard errors: of means, shares, differences, over held-out pairs and over seeds.

Pure arithmetic without numpy, so that the login node can compare trials and training can use the same estimators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

LEVEL = 0.05
"""Two-sided significance level: a difference counts if its p-value is below it."""
_POWER = 0.84  # standard errors beyond the threshold that make a true difference significant in 4 of 5 experiments
_MOST_SEEDS = 100


Counted = Literal["pairs", "prompts"]


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means."""

    value: float
    error: float | None = None
    """Standard error; None if it cannot be known."""
    at_most: bool = False
    """Whether `error` is an upper bound only."""
    pairs: int | None = None
    """Held-out pairs that it was measured on."""
    counted: Counted = "pairs"
    """What `pairs` counts."""
    paired: bool = False
    """Whether it is a difference of two policies, taken pair by pair."""
    seeds: int = 1
    seed_error: float = 0.0
    """The part of `error` that comes from the spread between seeds; 0 with one seed, where it is unknown."""
    freedom: float = math.inf
    """Degrees of freedom of the part of `error` that comes from the pairs."""

    def chance(self, direction: int) -> float:
        """One-sided p-value of the claim that the true value lies above 0 (direction 1) or below it (-1).

        The spread between S seeds has S - 1 degrees of freedom, that over pairs has many: the two p-values are weighted
        by their shares of the variance, as Cochran and Cox (1950) weight critical values. Satterthwaite's degrees of
        freedom find up to nine times too many small p-values with three seeds; a spread that is small by chance
        raises them.
        """
        if self.error is None:
            return 1.0
        if self.error == 0:
            return 0.0 if self.value * direction > 0 else 1.0
        t, seeds = direction * self.value / self.error, (self.seed_error / self.error) ** 2
        over_pairs = (1 - seeds) * student_tail(t, self.freedom)
        return over_pairs + (seeds * student_tail(t, self.seeds - 1) if seeds else 0.0)

    def needed(self, level: float = LEVEL) -> str:
        """How many pairs or seeds make a difference of this size significant in 4 of 5 experiments; "": unknown."""
        if not self.error or self.at_most or not self.pairs or not self.value:
            return ""
        over_pairs = self.error**2 - self.seed_error**2
        if self.seed_error**2 > over_pairs:
            for seeds in range(self.seeds + 1, _MOST_SEEDS + 1):
                allowed = self.value / (quantile(level / 2, seeds - 1) + _POWER)
                if over_pairs + self.seeds * self.seed_error**2 / seeds <= allowed**2:
                    return f"about {seeds} seeds per beta"
        allowed = self.value / (quantile(level / 2, self.freedom) + _POWER)
        if allowed**2 > self.seed_error**2:
            return f"about {_round_up(self.pairs * over_pairs / (allowed**2 - self.seed_error**2)):,} {self.counted}"
        return f"more than {_MOST_SEEDS} seeds per beta, or more {self.counted} and seeds,"


def mean(values: Sequence[float]) -> Estimate:
    """Mean and its standard error (sample standard deviation / sqrt n)."""
    return ratio(values, [1.0] * len(values))


def ratio(sums: Sequence[float], sizes: Sequence[float], counted: Counted = "pairs") -> Estimate:
    """Sum of `sums` over sum of `sizes`, such as a mean over all tokens from each pair's sum and number of tokens.

    The tokens of a pair depend on each other, so the pair is the unit: the ratio estimator (Cochran 1977, eq. 6.9).
    With sizes of 1 it is the mean and its ordinary standard error. Raises ZeroDivisionError if all sizes are 0.
    """
    n, size = len(sums), math.fsum(sizes)
    value = math.fsum(sums) / size
    if n < 2:
        return Estimate(value, pairs=n, counted=counted)
    squares = math.fsum((total - value * own) ** 2 for total, own in zip(sums, sizes, strict=True))
    return Estimate(value, math.sqrt(n * squares / (n - 1)) / size, pairs=n, counted=counted, freedom=n - 1)


def share_error(share: float, pairs: int) -> float:
    """Standard error of a share of `pairs`, by Agresti and Coull's rule of two more successes and failures (1998).

    The textbook's formula gives 0 if all pairs are right, which is more certainty than 32 pairs can give.
    """
    share = (share * pairs + 2) / (pairs + 4)
    return math.sqrt(share * (1 - share) / (pairs + 4))


def matched_error(gained: float, lost: float, pairs: int) -> float:
    """Standard error of a difference of two shares of the same pairs, not 0 even if both are right on the same ones.

    Half a pair is added to each of the four cells (Agresti and Min 2005, Statistics in Medicine 24). `gained` and
    `lost` may be fractions, if a pair's answers were averaged over seeds; the error is then an upper bound.
    """
    up, down, all_pairs = gained + 0.5, lost + 0.5, pairs + 2
    return math.sqrt(up + down - (up - down) ** 2 / all_pairs) / all_pairs


def over_seeds(values: Sequence[float], over_pairs: Estimate) -> Estimate:
    """The mean over several seeds. `over_pairs` is the estimate of that mean with the error over pairs only.

    The variance is the sum of the two (seeds and pairs are crossed; their interaction is in both parts, so that the
    sum is never too small).
    """
    if len(values) < 2:
        return over_pairs
    between = mean(values)
    seed_error = between.error or 0.0
    error = None if over_pairs.error is None else math.hypot(seed_error, over_pairs.error)
    return replace(over_pairs, value=between.value, error=error, seeds=len(values), seed_error=seed_error)


def holm(chances: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests (Holm 1979): with probability 1 - LEVEL, none below LEVEL is false."""
    adjusted = [1.0] * len(chances)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda it: chances[it])):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        adjusted[place] = largest
    return adjusted


def student_tail(t: float, freedom: float) -> float:
    """P(T > t) for Student's t distribution; `freedom` may be infinite (the normal distribution)."""
    if freedom <= 0:
        raise ValueError(f"no spread is known with {freedom} degrees of freedom")
    if math.isinf(freedom):
        return math.erfc(t / math.sqrt(2)) / 2
    tail = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return tail if t >= 0 else 1 - tail


@lru_cache(maxsize=1024)
def quantile(chance: float, freedom: float) -> float:
    """The t with P(T > t) = chance, for chances below one half."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > chance:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > chance else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function by its continued fraction (DLMF 8.17.22, Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # here the fraction converges slowly
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * value


def shown(value: float, error: float | None, form: str, at_most: bool = False) -> str:
    """`0.625 ± 0.086`: the error with two digits, the value with `form`'s decimals, or as many as the error has."""
    if error is None or not math.isfinite(error):
        return format(value, form)
    places = 2 if error == 0 else min(9, max(0, 1 - math.floor(math.log10(error))))
    sign, decimals = form.partition(".")[0], int(form.partition(".")[2].rstrip("f"))
    return f"{value:{sign}.{max(places, decimals)}f} ± {'≤ ' if at_most else ''}{error:.{places}f}"


def _round_up(count: float) -> int:
    """Round up to two digits: the need is not known more precisely."""
    step: int = 10 ** max(0, math.floor(math.log10(max(1.0, count))) - 1)
    return math.ceil(count / step) * step
