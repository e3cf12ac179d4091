"""Verdicts: whether a hypothesis holds, on which estimates that rests, and how sure it is. All verdicts are made here.

A hypothesis of the config may say what the measures have to show (`expect`, see expectations.py).

A finding is significant if its p-value is below LEVEL after Holm's correction for all findings of the report; one that
is significant in neither direction is inconclusive. Errors are over held-out pairs, and over seeds if a beta has
several: with one seed per beta, it is not known how much another seed would differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher import estimates
from launcher.report import expectations, measures
from launcher.report.expectations import Judged, Outcome
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.pools import Pool, difference
from launcher.report.trials import TrialReport


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
    """Whether a smaller beta drifts further, as DPO's theory says: on held-out pairs and, where the policies have
    answered prompts, in their own answers; for each set of other overrides."""

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
    theory = [
        _falls(report, group, measure, claim)
        for group in groups
        if len({pool.beta for pool in group}) > 1
        for measure, claim in _drifts(report, group)
    ]
    first = Judgement(tuple(raw), tuple(theory))
    family = len(first.findings)
    adjusted = iter(estimates.holm([finding.chance for finding in first.findings]))

    def corrected(findings: Sequence[Judged]) -> tuple[Judged, ...]:
        return tuple(replace(finding, adjusted=next(adjusted), family=family) for finding in findings)

    verdicts = tuple(replace(verdict, findings=corrected(verdict.findings)) for verdict in raw)
    return Judgement(verdicts, corrected(theory))


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
    why = f"best {measure.title} of {trials} trials: {expectations.value(chosen, measure, report)}"
    if len(chosen.done) > 1:
        why += f", mean of {len(chosen.done)} seeds, of which this is the best"
    if len(equal) > 1:
        others = [pool.name for pool in equal if pool is not chosen]
        why += f", equal to {expectations.some(others)}; it drifted least of these"
    return max(chosen.done, key=lambda trial: sign * trial.estimates[key].value), why


def _verdict(report: Report, hypothesis: Mapping[str, object], group: Sequence[Pool]) -> Verdict:
    beta, label = hypothesis.get("beta"), group[0].label
    name = " ".join(filter(None, (str(hypothesis.get("name", "")), f"({label})" if label else "")))
    verdict = Verdict(beta, name, str(hypothesis.get("claim", "")))
    own = next((pool for pool in group if expectations.same(pool.beta, beta)), None)
    if own is None:
        return replace(verdict, why="no trial of this sweep has this beta")
    expect = hypothesis.get("expect")
    if expect is None:
        return replace(verdict, why="the hypothesis does not name the measure that it is about (key `expect`)")
    wrong = expectations.problem(expect)
    if wrong:
        return replace(verdict, why=f"`expect` {wrong}")
    if not own.done:
        return replace(verdict, why=f"its trial has no result ({own.why})")
    return replace(verdict, findings=tuple(expectations.findings(report, expect, own, group)))


def _drifts(report: Report, group: Sequence[Pool]) -> Iterator[tuple[Measure, str]]:
    yield report.drift_measure, "the drift from the reference falls as beta rises"
    own = measures.REGISTRY["kl_own"]
    if any(own.key in pool.estimates for pool in group):
        yield own, "the drift of the policy's own answers falls as beta rises"


def _falls(report: Report, group: Sequence[Pool], measure: Measure, claim: str) -> Judged:
    """Whether a measure falls with every step of beta in a group."""
    about = " ".join(filter(None, (group[0].label, claim)))
    done = [pool for pool in group if pool.done and measure.key in pool.estimates]
    steps = [
        (low, high, difference(measure, low, high))
        for low, high in zip(done, done[1:], strict=False)
        if low.beta != high.beta
    ]
    shown = done if len(done) <= expectations.MOST_NAMED else [done[0], done[-1]]
    values = ", ".join(f"{expectations.value(pool, measure, report)} at {pool.name}" for pool in shown)
    text = f"{measure.title}: {values}" if values else f"{measure.title} is not known for any trial"
    text += "".join(
        f"; {low.name} minus {high.name}: {expectations.certainty(step)}"
        for low, high, step in steps[: expectations.MOST_NAMED]
    )
    absent = [pool.name for pool in group if pool not in done]
    if absent:
        text += f"; nothing is known about {expectations.some(absent)} yet"
    if not steps:
        return Judged(about, text)
    falls = 1.0 if absent else max(step.chance(1) for _, _, step in steps)
    rises = min(1.0, len(steps) * min(step.chance(-1) for _, _, step in steps))
    weakest = max((step for _, _, step in steps), key=lambda step: step.chance(1))
    return Judged(about, text, falls, rises, None if absent else weakest)
