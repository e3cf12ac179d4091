"""How long a file's pairs are, from the dataset.json beside it, and to what length a batch of them is padded."""

from __future__ import annotations

import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from launcher.nemo import data_files

_POINTS = 4  # points in each bin at which a binomial distribution is evaluated
_SAMPLED = 256  # rows that are read to see how much of a pair is its prompt
CHARACTERS_A_TOKEN = 4.0
"""A rule of thumb for English; used only for sets that were prepared without a tokenizer."""


@dataclass(frozen=True)
class PairLengths:
    """Tokens of the longer side of each pair, prompt included, as a distribution: uniform within each bin.

    The bins are half an octave wide, so a figure from them is good to some 5 %.
    """

    rows: int
    mean: float
    bins: tuple[tuple[float, float, float], ...]
    """(lower end, upper end, share of the pairs) in ascending order; the last bin ends at the longest pair."""
    counted: bool
    """Whether a tokenizer counted the lengths. False: they are estimated from characters."""
    row_share: float = 2.0
    """Prompt and both responses, in lengths of the longer side. By characters of the first rows; 2 if unknown."""

    def longest_of(self, count: int) -> float:
        """Expected length of the longest of `count` pairs drawn at random, in tokens; for one pair, the mean."""
        return min(self._maximum(count) * self.mean / self._maximum(1), self.bins[-1][1])

    def padded(self, together: int, share: int) -> float:
        """Expected length that a pair is padded to, in tokens, if `share` pairs drawn at random are sorted by length
        and each group of `together` is padded to its longest.
        """
        if together == 1 or together >= share:
            return self.longest_of(min(together, share))
        return min(self._longest_of_each(together, share) * self.mean / self._maximum(1), self.bins[-1][1])

    @functools.cache  # noqa: B019  (as below)
    def _longest_of_each(self, together: int, share: int) -> float:
        """The mean of the groups' longest. The k-th shortest of n has as its mean the integral of P(fewer than k are
        shorter).
        """
        total, below, reached = 0.0, 0.0, 0.0
        for start, end, part in self.bins:
            points = [below + part * (point + 0.5) / _POINTS for point in range(_POINTS)]
            inside = sum(_groups_beyond(chance, together, share) for chance in points) / _POINTS
            total += (start - reached) * _groups_beyond(below, together, share) + (end - start) * inside
            below, reached = below + part, end
        return total

    @functools.cache  # noqa: B019  (a few of these objects exist, live as long as the process, and are called often)
    def _maximum(self, count: int) -> float:
        """The integral of 1 - F(x)^count over x from 0, in closed form: F is linear within each bin."""
        total, below, reached = 0.0, 0.0, 0.0
        for start, end, share in self.bins:
            above = below + share
            power = (above ** (count + 1) - below ** (count + 1)) / ((count + 1) * share)  # its mean in the bin
            total += (start - reached) * (1 - below**count) + (end - start) * (1 - power)
            below, reached = above, end
        return total


def _groups_beyond(chance: float, together: int, share: int) -> float:
    """Expected fraction of the groups of a sorted share whose longest pair is above a length x; a pair is below x with
    probability `chance`. The j-th group's longest is above x if fewer than j x `together` pairs are below.
    """
    chance = min(max(chance, 1e-12), 1 - 1e-12)
    sure, beyond = 0.0, 0.0
    for below in range(share):
        ways = math.lgamma(share + 1) - math.lgamma(below + 1) - math.lgamma(share - below + 1)
        sure += math.exp(ways + below * math.log(chance) + (share - below) * math.log1p(-chance))
        if (share - below - 1) % together == 0:
            beyond += sure
    return beyond / math.ceil(share / together)


def load(path: Path) -> PairLengths | None:
    """The lengths of a file of pairs; None if it has no record, or has changed since it was written."""
    known = data_files.record(path)
    if known is None or known.rows is None:
        return None
    try:
        counted, longest = known.unit == "tokens", float(known.lengths["max"])
        scale = 1.0 if counted else 1 / CHARACTERS_A_TOKEN
        counts = {_edge(name, longest): int(count) for name, count in known.lengths["histogram"].items() if count}
        mean = float(known.lengths["mean"])
    except (ValueError, KeyError, TypeError, AttributeError):  # not written by prepare_data.py
        return None
    bins, reached = [], 0.0
    for edge, count in sorted(counts.items()):
        start = min(max(reached, edge / 1.5), edge)  # the record omits empty bins
        bins.append((start * scale, edge * scale, count / sum(counts.values())))
        reached = edge
    return PairLengths(known.rows, mean * scale, tuple(bins), counted, _row_share(path)) if bins else None


def _row_share(path: Path) -> float:
    rows = longer = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, itertools.islice(lines, _SAMPLED)):
                prompt, *sides = (len(row[name]) for name in ("prompt", "chosen_response", "rejected_response"))
                rows += prompt + sum(sides)
                longer += prompt + max(sides)
    except (ValueError, KeyError, TypeError):  # packed pairs, or not written by prepare_data.py
        return 2.0
    return rows / longer if longer else 2.0


def _edge(name: str, longest: float) -> float:
    """The upper end of a bin named `<= 256` or `> 8192`; it is never above the longest pair."""
    sign, edge = name.split()
    return longest if sign == ">" else min(float(edge), longest)
