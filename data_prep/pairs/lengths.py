"""Statistics of lengths in constant memory: only the count of each length is stored."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate

#: Upper ends of the histogram's bins, half an octave apart: padding wastes up to one bin's width.
EDGES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


class Lengths:
    def __init__(self) -> None:
        self._rows: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self._rows[length] += 1

    def facts(self) -> dict[str, object]:
        """Mean, median, p99 and longest, and the histogram as {"<= edge": rows}; empty for no rows."""
        total = self._rows.total()
        if not total:
            return {}
        return {
            "mean": round(sum(length * rows for length, rows in self._rows.items()) / total, 1),
            "median": self._quantile(0.5),
            "p99": self._quantile(0.99),
            "max": max(self._rows),
            "histogram": self._histogram(),
        }

    def _quantile(self, share: float) -> int:
        """The shortest length that at least `share` of the rows do not exceed."""
        needed = share * self._rows.total()
        ordered = sorted(self._rows)
        sums = accumulate(self._rows[length] for length in ordered)
        return next(length for length, rows in zip(ordered, sums, strict=True) if rows >= needed)

    def _histogram(self) -> dict[str, int]:
        bins: Counter[str] = Counter()
        for length in sorted(self._rows):
            edge = next((edge for edge in EDGES if length <= edge), None)
            bins[f"<= {edge}" if edge else f"> {EDGES[-1]}"] += self._rows[length]
        return dict(bins)
