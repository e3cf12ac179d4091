"""What a hypothesis expects of the measures, and what these show about it.

    expect: {drift: highest}                                   one measure
    expect: {accuracy: above chance, kl: not highest}          all of several
    expect: {kl: lowest, win: below beta 0.1}                  against another trial of the sweep
    expect: {any: [{win: not lowest}, {following: not lowest}], distinct: not lowest}
    expect: {any: [{length_ratio: highest, unended: highest}, {repeated: highest}]}

Each entry of the mapping is a finding of its own, and all have to be supported. `any` is one finding: it is supported
by any of its entries, corrected for their number (Bonferroni), and contradicted only where all are; entries in one
mapping within it have to hold together. `all` names several mappings, where a measure has to occur twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from launcher import estimates
from launcher.estimates import LEVEL, Estimate
from launcher.report import measures
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.pools import Pool, difference

Outcome = Literal["supported", "contradicted", "inconclusive"]
EXPECTATIONS = ("highest", "lowest", "not highest", "not lowest", "above chance", "above beta N", "below beta N")
ANY, ALL = "any", "all"
MOST_NAMED = 8  # trials or comparisons named in one sentence
_VERSUS = re.compile(r"(above|below) beta ([0-9.]+(?:[eE][+-]?[0-9]+)?)")


@dataclass(frozen=True)
class Judged:
    """What one measure shows about one claim."""

    about: str
    """`drift highest`"""
    text: str
    """The estimates it rests on, with their errors."""
    chance_for: float = 1.0
    """One-sided p-value: the probability that mere chance supports the claim at least this well."""
    chance_against: float = 1.0
    """The same for contradicting it."""
    decides: Estimate | None = None
    """The difference that decides the outcome; None if more pairs or seeds would not decide it."""
    adjusted: float = 1.0
    """Two-sided p-value after Holm's correction."""
    family: int = 1
    """The number of findings that it was corrected for."""

    @property
    def chance(self) -> float:
        """Two-sided p-value."""
        return min(1.0, 2 * min(self.chance_for, self.chance_against))

    @property
    def outcome(self) -> Outcome:
        if self.adjusted >= LEVEL:
            return "inconclusive"
        return "supported" if self.chance_for < self.chance_against else "contradicted"

    @property
    def sentence(self) -> str:
        """The estimates, the p-value, and if it is inconclusive, how many pairs or seeds would decide it."""
        sure = f"; p {p_value(self.adjusted)}" if self.chance < 1 else ""
        undecided = self.decides if self.outcome == "inconclusive" else None
        needed = undecided.needed(LEVEL / self.family) if undecided else ""
        return f"{self.text}{sure}{f'; {needed} would decide a difference of this size' if needed else ''}"


def problem(expect: object) -> str:
    """What is wrong with a hypothesis's `expect`; "" if nothing is."""
    known = measures.REGISTRY
    if not isinstance(expect, dict) or not expect:
        return f"must name a measure and an expectation, such as {{drift: highest}}; measures: {', '.join(known)}"
    for key, expected in expect.items():
        if key in (ANY, ALL):
            if not isinstance(expected, list) or not expected:
                return f"has no list under `{key}`, such as {key}: [{{drift: highest}}, {{kl: highest}}]"
            if wrong := next(filter(None, map(problem, expected)), ""):
                return wrong
        elif wrong := _problem(key, expected):
            return wrong
    return ""


def _problem(key: str, expected: object) -> str:
    known = measures.REGISTRY
    if key not in known:
        return f"has the unknown measure '{key}'; there are {', '.join(known)}"
    if expected not in EXPECTATIONS[:5] and not _VERSUS.fullmatch(str(expected)):
        return f"has '{expected}' for {key}; allowed are {', '.join(EXPECTATIONS)}"
    if expected == "above chance" and known[key].chance is None:
        levels = " and ".join(name for name, measure in known.items() if measure.chance is not None)
        return f"compares {key} with a chance level, which only {levels} have"
    if expected != "above chance" and not known[key].across_betas:
        return f"cannot rank betas by {key}, which depends on beta itself"
    return ""


def findings(report: Report, expect: Any, own: Pool, group: Sequence[Pool]) -> list[Judged]:
    """What the measures show about `expect` (which has no problem), of the trials `own` among those of `group`."""
    found: list[Judged] = []
    for key, expected in expect.items():
        if key == ALL:
            found += [finding for part in expected for finding in findings(report, part, own, group)]
        elif key == ANY:
            found.append(_any([_together(findings(report, part, own, group)) for part in expected]))
        else:
            found.append(_finding(report, measures.REGISTRY[key], str(expected), own, group))
    return found


def _together(parts: Sequence[Judged]) -> Judged:
    """Findings that have to hold together, as one: as sure as the least sure."""
    if len(parts) == 1:
        return parts[0]
    weakest = max(parts, key=lambda part: part.chance_for)
    against = min(1.0, len(parts) * min(part.chance_against for part in parts))
    about, text = (" and ".join(words) for words in ([p.about for p in parts], [p.text for p in parts]))
    return Judged(about, text, weakest.chance_for, against, weakest.decides)


def _any(parts: Sequence[Judged]) -> Judged:
    """Findings of which one has to hold, as one."""
    if len(parts) == 1:
        return parts[0]
    likeliest = min(parts, key=lambda part: part.chance_for)
    chance_for = min(1.0, len(parts) * likeliest.chance_for)
    against = max(part.chance_against for part in parts)
    about = f"any of: {', '.join(part.about for part in parts)}"
    text = "; or ".join(f"{part.about}: {part.text}" for part in parts)
    return Judged(about, text, chance_for, against, likeliest.decides)


def _finding(report: Report, measure: Measure, expected: str, own: Pool, group: Sequence[Pool]) -> Judged:
    """What one measure shows about one expectation."""
    about = f"{measure.title} {expected}"
    estimate = own.estimates.get(measure.key)
    if estimate is None:
        missing = "is not known" if measure.logged else f"was not evaluated ({_command(measure)})"
        return Judged(about, f"{measure.title} {missing}")
    shown = f"{value(own, measure, report)} at {own.name}"
    if expected == "above chance" and measure.chance is not None:
        over = replace(estimate, value=estimate.value - measure.chance)
        text = f"{shown}, chance is {measure.chance:g}; difference {certainty(over)}"
        return Judged(about, text, over.chance(1), over.chance(-1), over)
    if versus := _VERSUS.fullmatch(expected):
        return _versus(report, measure, versus[1], float(versus[2]), own, group)
    others = [pool for pool in group if pool is not own and not same(pool.beta, own.beta)]
    known = [pool for pool in others if pool.done and measure.key in pool.estimates]
    if not known:
        return Judged(about, f"{shown}; there is nothing to compare it with")
    direction = 1 if expected.endswith("highest") else -1
    compared = [(pool, difference(measure, own, pool)) for pool in known]
    # It is the highest if it is above all others, and it is not if it is below any of them.
    all_above = max(it.chance(direction) for _, it in compared)
    any_below = min(1.0, len(compared) * min(it.chance(-direction) for _, it in compared))
    absent = [pool.name for pool in others if pool not in known]
    if absent:
        all_above = 1.0  # a missing beta may still turn out higher; one that is already higher stays higher
    nearest, nearest_difference = min(compared, key=lambda it: direction * it[1].value)
    text = f"{shown}; {value(nearest, measure, report)} at {nearest.name}; difference {certainty(nearest_difference)}"
    text += f"; nothing is known about {some(absent)} yet" if absent else ""
    decides = None if absent else nearest_difference
    if expected.startswith("not "):
        return Judged(about, text, any_below, all_above, decides)
    return Judged(about, text, all_above, any_below, decides)


def _versus(report: Report, measure: Measure, side: str, beta: float, own: Pool, group: Sequence[Pool]) -> Judged:
    """Above or below the trials of one other beta."""
    about = f"{measure.title} {side} beta {beta:g}'s"
    value_own = f"{value(own, measure, report)} at {own.name}"
    other = next((pool for pool in group if same(pool.beta, beta)), None)
    if other is None or not other.done or measure.key not in other.estimates:
        return Judged(about, f"{value_own}; nothing is known about beta {beta:g}")
    apart, sign = difference(measure, own, other), 1 if side == "above" else -1
    text = f"{value_own}; {value(other, measure, report)} at {other.name}; difference {certainty(apart)}"
    return Judged(about, text, apart.chance(sign), apart.chance(-sign), apart)


def _command(measure: Measure) -> str:
    """The command that computes the measure."""
    return "report --evaluate" if measure.table == "evaluation" else "evaluate"


def certainty(difference: Estimate) -> str:
    """`+2.861 ± 0.310 (9.2 standard errors; 32 pairs, pair by pair; 3 seeds)`"""
    if difference.error is None:
        return f"{difference.value:+.3g}, of unknown standard error"
    times = abs(difference.value) / difference.error if difference.error else math.inf
    times = math.floor(10 * times) / 10 if math.isfinite(times) else times  # 1.96 is not yet 2.0
    parts = [f"{'at least ' if difference.at_most else ''}{times:.1f} standard errors"]
    if difference.pairs:
        by = f", {difference.counted[:-1]} by {difference.counted[:-1]}" if difference.paired else ""
        parts.append(f"{difference.pairs} {difference.counted}{by}")
    if difference.seeds > 1:
        parts.append(f"{difference.seeds} seeds")
    figure = estimates.shown(difference.value, difference.error, "+.0f", difference.at_most)
    return f"{figure} ({'; '.join(parts)})"


def value(pool: Pool, measure: Measure, report: Report) -> str:
    it = pool.estimates[measure.key]
    unit = measure.unit_of(report.per)
    return f"{estimates.shown(it.value, it.error, measure.form, it.at_most)}{' ' if unit else ''}{unit}"


def p_value(chance: float) -> str:
    return "< 0.0001" if chance < 0.0001 else f"= {chance:.2g}"


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def same(beta: float | None, other: object) -> bool:
    return beta is not None and isinstance(other, (int, float)) and math.isclose(beta, other, rel_tol=1e-9)
