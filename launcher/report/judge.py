"""Verdicts: whether a hypothesis holds, on which estimates that rests, and how sure it is. All verdicts are made here.

A hypothesis of the config may say which measures its claim is about:

    experiment.hypotheses: [{beta: 0.05, name: unstable, claim: drifts furthest, expect: {drift: highest}}]

A finding is significant if its p-value is below LEVEL after Holm's correction for all findings of the report; one that
is significant in neither direction is inconclusive. Errors are over held-out pairs, and over seeds if a beta has
several: with one seed per beta, it is not known how much another seed would differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from launcher import estimates
from launcher.estimates import LEVEL, Estimate
from launcher.report import measures
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.pools import Pool, difference
from launcher.report.trials import TrialReport

Outcome = Literal["supported", "contradicted", "inconclusive"]
EXPECTATIONS = ("highest", "lowest", "not highest", "not lowest", "above chance")
_MOST_NAMED = 8  # trials or comparisons named in one sentence


@dataclass(frozen=True)
class Judged:
    """What one measure shows about one claim."""

    about: str
    """`drift highest`"""
    text: str
    """The estimates it rests on, with their errors."""
    chance_for: float = 1.0
    """One-sided p-value: the probability that chance alone supports the claim at least this well."""
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
        p_value = f"; p {_p(self.adjusted)}" if self.chance < 1 else ""
        undecided = self.decides if self.outcome == "inconclusive" else None
        needed = undecided.needed(LEVEL / self.family) if undecided else ""
        return f"{self.text}{p_value}{f'; {needed} would decide a difference of this size' if needed else ''}"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one hypothesis."""

    beta: object
    name: str
    claim: str
    findings: tuple[Judged, ...] = ()
    why: str = ""
    """If there is no finding: why not."""

    @property
    def outcome(self) -> Outcome:
        outcomes = {finding.outcome for finding in self.findings}
        if "contradicted" in outcomes:
            return "contradicted"
        return "supported" if outcomes == {"supported"} else "inconclusive"

    @property
    def heading(self) -> str:
        """`beta 0.05, unstable`"""
        beta = f"{self.beta:g}" if isinstance(self.beta, (int, float)) else str(self.beta)
        return f"beta {beta}, {self.name}"


@dataclass(frozen=True)
class Judgement:
    """All verdicts of a report, corrected for multiple comparisons."""

    verdicts: tuple[Verdict, ...]
    """One for each hypothesis of the experiment and each set of other overrides."""
    theory: tuple[Judged, ...]
    """Whether a smaller beta drifts further, as DPO's theory says: one finding for each set of other overrides."""

    @property
    def findings(self) -> list[Judged]:
        return [*(finding for verdict in self.verdicts for finding in verdict.findings), *self.theory]


def judge(report: Report) -> Judgement:
    """All verdicts that the report's figures allow."""
    groups = list(report.groups.values())
    raw = [
        _verdict(report, hypothesis, group)
        for hypothesis in report.sweep.experiment.get("hypotheses") or ()
        for group in groups
    ]
    theory = [_theory(report, group) for group in groups if len({pool.beta for pool in group}) > 1]
    first = Judgement(tuple(raw), tuple(theory))
    family = len(first.findings)
    adjusted = iter(estimates.holm([finding.chance for finding in first.findings]))

    def corrected(findings: Sequence[Judged]) -> tuple[Judged, ...]:
        return tuple(replace(finding, adjusted=next(adjusted), family=family) for finding in findings)

    verdicts = tuple(replace(verdict, findings=corrected(verdict.findings)) for verdict in raw)
    return Judgement(verdicts, corrected(theory))


def problem(expect: object) -> str:
    """What is wrong with a hypothesis's `expect`; "" if nothing is."""
    known = measures.REGISTRY
    if not isinstance(expect, dict) or not expect:
        return f"must name a measure and an expectation, such as {{drift: highest}}; measures: {', '.join(known)}"
    for key, expected in expect.items():
        if key not in known:
            return f"has the unknown measure '{key}'; there are {', '.join(known)}"
        if expected not in EXPECTATIONS:
            return f"has '{expected}' for {key}; allowed are {', '.join(EXPECTATIONS)}"
        if expected == "above chance" and known[key].chance is None:
            levels = " and ".join(name for name, measure in known.items() if measure.chance is not None)
            return f"compares {key} with a chance level, which only {levels} have"
        if expected != "above chance" and not known[key].across_betas:
            return f"cannot rank betas by {key}, which depends on beta itself"
    return ""


def best(report: Report, key: str) -> tuple[TrialReport, str]:
    """The done trial that is best by the measure `key`, and why; of equals, the one that drifted least.

    Trials that differ only in their seed are ranked by their mean, and the best of them is taken. Raises ValueError if
    no done trial has the measure, or if the measure does not rank betas.
    """
    measure = measures.REGISTRY[key]
    sign = -1 if measure.better == "lower" else 1
    known = [pool for pool in report.pools if pool.done and key in pool.estimates]
    if not known:
        raise ValueError(f"no trial that is done has its {measure.title}")
    if not measure.across_betas and len({pool.beta for pool in known}) > 1:
        raise ValueError(f"{measure.title} depends on beta itself, so it cannot rank trials of different betas")
    highest = max(sign * pool.estimates[key].value for pool in known)
    equal = [pool for pool in known if sign * pool.estimates[key].value == highest]
    chosen = min(equal, key=lambda pool: pool.estimates["drift"].value if "drift" in pool.estimates else math.inf)
    trials = sum(len(pool.done) for pool in known)
    why = f"best {measure.title} of {trials} trials: {_value(chosen, measure, report)}"
    if len(chosen.done) > 1:
        why += f", mean of {len(chosen.done)} seeds, of which this is the best"
    if len(equal) > 1:
        why += f", equal to {_some([pool.name for pool in equal if pool is not chosen])}; it drifted least of these"
    return max(chosen.done, key=lambda trial: sign * trial.estimates[key].value), why


def _verdict(report: Report, hypothesis: Mapping[str, object], group: Sequence[Pool]) -> Verdict:
    beta, label = hypothesis.get("beta"), group[0].label
    name = " ".join(filter(None, (str(hypothesis.get("name", "")), f"({label})" if label else "")))
    verdict = Verdict(beta, name, str(hypothesis.get("claim", "")))
    own = next((pool for pool in group if _same(pool.beta, beta)), None)
    if own is None:
        return replace(verdict, why="no trial of this sweep has this beta")
    expect = hypothesis.get("expect")
    if expect is None:
        return replace(verdict, why="the hypothesis does not name the measure that it is about (key `expect`)")
    wrong = problem(expect)
    if wrong or not isinstance(expect, dict):
        return replace(verdict, why=f"`expect` {wrong}")
    if not own.done:
        return replace(verdict, why=f"its trial has no result ({own.why})")
    findings = [_finding(report, measures.REGISTRY[key], word, own, group) for key, word in expect.items()]
    return replace(verdict, findings=tuple(findings))


def _finding(report: Report, measure: Measure, expected: str, own: Pool, group: Sequence[Pool]) -> Judged:
    about = f"{measure.title} {expected}"
    estimate = own.estimates.get(measure.key)
    if estimate is None:
        missing = "is not known" if measure.logged else f"was not evaluated ({_command(measure)})"
        return Judged(about, f"{measure.title} {missing}")
    value = f"{_value(own, measure, report)} at {own.name}"
    if expected == "above chance" and measure.chance is not None:
        over = replace(estimate, value=estimate.value - measure.chance)
        text = f"{value}, chance is {measure.chance:g}; difference {_certainty(over)}"
        return Judged(about, text, over.chance(1), over.chance(-1), over)
    others = [pool for pool in group if pool is not own and not _same(pool.beta, own.beta)]
    known = [pool for pool in others if pool.done and measure.key in pool.estimates]
    if not known:
        return Judged(about, f"{value}; there is nothing to compare it with")
    direction = 1 if expected.endswith("highest") else -1
    compared = [(pool, difference(measure, own, pool)) for pool in known]
    # It is the highest if it is above all others, and it is not if it is below any of them.
    all_above = max(it.chance(direction) for _, it in compared)
    any_below = min(1.0, len(compared) * min(it.chance(-direction) for _, it in compared))
    absent = [pool.name for pool in others if pool not in known]
    if absent:
        all_above = 1.0  # a missing beta may still turn out higher; one that is already higher stays higher
    nearest, nearest_difference = min(compared, key=lambda it: direction * it[1].value)
    text = f"{value}; {_value(nearest, measure, report)} at {nearest.name}; difference {_certainty(nearest_difference)}"
    text += f"; nothing is known about {_some(absent)} yet" if absent else ""
    decides = None if absent else nearest_difference
    if expected.startswith("not "):
        return Judged(about, text, any_below, all_above, decides)
    return Judged(about, text, all_above, any_below, decides)


def _command(measure: Measure) -> str:
    """The command that computes the measure."""
    return "report --evaluate" if measure.table == "evaluation" else "evaluate"


def _theory(report: Report, group: Sequence[Pool]) -> Judged:
    about = " ".join(filter(None, (group[0].label, "the drift from the reference falls as beta rises")))
    measure = report.drift_measure
    done = [pool for pool in group if pool.done and measure.key in pool.estimates]
    steps = [
        (low, high, difference(measure, low, high))
        for low, high in zip(done, done[1:], strict=False)
        if low.beta != high.beta
    ]
    shown = done if len(done) <= _MOST_NAMED else [done[0], done[-1]]
    values = ", ".join(f"{_value(pool, measure, report)} at {pool.name}" for pool in shown)
    text = f"{measure.title}: {values}" if values else f"{measure.title} is not known for any trial"
    text += "".join(f"; {low.name} minus {high.name}: {_certainty(step)}" for low, high, step in steps[:_MOST_NAMED])
    absent = [pool.name for pool in group if pool not in done]
    if absent:
        text += f"; nothing is known about {_some(absent)} yet"
    if not steps:
        return Judged(about, text)
    falls = 1.0 if absent else max(step.chance(1) for _, _, step in steps)
    rises = min(1.0, len(steps) * min(step.chance(-1) for _, _, step in steps))
    weakest = max((step for _, _, step in steps), key=lambda step: step.chance(1))
    return Judged(about, text, falls, rises, None if absent else weakest)


def _certainty(difference: Estimate) -> str:
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


def _value(pool: Pool, measure: Measure, report: Report) -> str:
    it = pool.estimates[measure.key]
    unit = measure.unit_of(report.per)
    return f"{estimates.shown(it.value, it.error, measure.form, it.at_most)}{' ' if unit else ''}{unit}"


def _p(chance: float) -> str:
    return "< 0.0001" if chance < 0.0001 else f"= {chance:.2g}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


def _same(beta: float | None, other: object) -> bool:
    return beta is not None and isinstance(other, (int, float)) and math.isclose(beta, other, rel_tol=1e-9)
