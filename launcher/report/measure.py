"""One measure that trials are compared by: what it reads, how it is computed, and where it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from launcher import estimates
from launcher.estimates import Counted, Estimate
from launcher.report.recorded import Pairs, Validation

Table = Literal["evaluation", "prompts", "pairs"]
"""Where a measure's columns are: in the evaluation of result.json, one value for each held-out pair; or in
evaluation/scores.json, one value for each prompt or for each held-out pair."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure. A new column of the evaluation can be used by its name as soon as the evaluation writes it."""

    key: str
    """Its name in `expect`, in `export --by` and in the CSV."""
    title: str
    note: str
    """A sentence that explains it below the tables. `{per}` as in `unit`."""
    form: str
    """Python's format for its value."""
    columns: tuple[str, ...]
    """The columns of `table` that `each_pair` and `sizes` read."""
    table: Table = "evaluation"
    each_pair: Callable[[Pairs, float | None], Sequence[float]]
    """(columns, beta) -> one value per pair, whose mean is the measure; with `sizes`, one sum per pair."""
    sizes: Callable[[Pairs], Sequence[float]] | None = None
    """The number of tokens of each pair, for a mean over tokens; or what else the sums are divided by."""
    logged: Callable[[Validation, float | None], float | None] | None = None
    """(validation, beta) -> its value, if NeMo-Aligner's validation logs it; None: the evaluation gives it."""
    bound: Callable[[float, float | None], float | None] | None = None
    """(upper bound of the error of the mean of both log-ratios, beta) -> upper bound of the measure's error."""
    unit: str = ""
    """`{per}` is replaced by what log-ratios are counted by: "response" or "token"."""
    better: Literal["higher", "lower", ""] = ""
    """"": neither is better."""
    chance: float | None = None
    """Its value for a policy that has learned nothing."""
    share: bool = False
    """Whether it is a share of the pairs or prompts; its error is then Agresti and Coull's."""
    across_betas: bool = True
    """Whether trials of different betas may be ranked by it."""
    brief: bool = False
    """Whether it is a column of the short table that is printed after a run."""
    glance: bool = False
    """Whether the page's cards show it."""
    against_beta: bool = False
    """Whether it is plotted against beta."""
    over_steps: bool = False
    """Whether it is plotted over the steps. Needs `logged`."""

    @property
    def counted(self) -> Counted:
        """What its errors are over."""
        return "prompts" if self.table == "prompts" else "pairs"

    def unit_of(self, per: str) -> str:
        return self.unit.format(per=per)

    def note_of(self, per: str) -> str:
        return self.note.format(per=per)

    def label(self, per: str) -> str:
        """The title with its unit, for an axis."""
        unit = self.unit_of(per)
        return f"{self.title}, {unit}" if unit else self.title

    def terms(self, pairs: Pairs | None, beta: float | None) -> tuple[Sequence[float], Sequence[float]] | None:
        """(a value for each pair, their weights); None if the evaluation lacks such columns, or has no token."""
        if pairs is None or any(name not in pairs for name in self.columns) or not pairs[self.columns[0]]:
            return None
        values = self.each_pair(pairs, beta)
        sizes = self.sizes(pairs) if self.sizes else [1.0] * len(values)
        return (values, sizes) if math.fsum(sizes) else None

    def estimate(
        self, validation: Validation | None, pairs: Pairs | None, beta: float | None, std: float | None
    ) -> Estimate | None:
        """Its value and standard error; None if it is not known.

        `pairs` are the evaluation's columns, or None if they do not describe what was logged. Without them only an
        upper bound of the error is known. It follows from `std`, the standard deviation of both log-ratios together
        (all that NeMo-Aligner logs), because var(chosen) + var(rejected) <= 2 std^2.
        """
        terms = self.terms(pairs, beta)
        own = estimates.ratio(*terms, self.counted) if terms else None
        if self.logged is None:
            if own is not None and own.pairs and self.share:
                return replace(own, error=estimates.share_error(own.value, own.pairs))
            return own
        value = self.logged(validation, beta) if validation else None
        count = validation.pairs if validation else None
        if value is None or not count:
            return None if value is None else Estimate(value)
        if self.share:
            error = estimates.share_error(value, count) if 0 <= value <= 1 else None
            return Estimate(value, error, pairs=count)
        if own is not None and own.error is not None and own.pairs:
            # The spread is that of the evaluated pairs, the number of pairs that of the validation.
            return Estimate(value, own.error * math.sqrt(own.pairs / count), pairs=count, freedom=own.freedom)
        bound = self.bound(std / math.sqrt(count), beta) if self.bound and std is not None else None
        return Estimate(value, bound, at_most=bound is not None, pairs=count)
