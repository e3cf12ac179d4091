"""Verdicts: does a hypothesis hold, on which figure does that rest, how sure is it.

A hypothesis of the config may say which figures its claim is about:

    experiment.hypotheses: [{beta: 0.05, name: unstable, claim: drifts furthest, expect: {drift: highest}}]

A difference counts where it is larger than SURE standard errors; what does not count either way cannot be told. The
errors are over held-out pairs: with one seed a beta nothing is known of how another seed would have come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.report import figures
from launcher.report.figures import Figure
from launcher.report.gather import MEASURES, Report, TrialReport

Word = Literal["supported", "contradicted", "cannot be told"]
SURE = 2.0  # standard errors; 95 % of a normal distribution lie within
EXPECTATIONS = ("highest", "lowest", "not highest", "not lowest", "above chance")
FORMS = {"loss": ".4f", "accuracy": ".3f", "margin": "+.4f", "drift": ".3f", "kl": ".4f"}
UNITS = {"loss": "", "accuracy": "", "margin": "", "drift": "nats a {per}", "kl": "nats a token"}
_MOST_SAID = 8  # trials named in one sentence
_CHANCE = {"accuracy": 0.5, "margin": 0.0}


@dataclass(frozen=True)
class Finding:
    """What one figure says."""

    word: Word
    about: str
    """`drift highest`"""
    figure: str
    """The figures it rests on, with their errors."""


@dataclass(frozen=True)
class Verdict:
    """On one hypothesis."""

    beta: float | None
    name: str
    claim: str
    word: Word
    findings: tuple[Finding, ...]
    why: str = ""
    """Where there is no finding: why not."""


def problem(expect: Any) -> str:
    """What is wrong with a hypothesis's `expect`; "" where nothing is."""
    if not isinstance(expect, dict) or not expect:
        return f"must say what is expected of a measure, such as {{drift: highest}}; measures: {', '.join(MEASURES)}"
    for measure, word in expect.items():
        if measure not in MEASURES:
            return f"knows no measure '{measure}'; there are {', '.join(MEASURES)}"
        if word not in EXPECTATIONS:
            return f"cannot expect '{word}' of {measure}; it can {', '.join(EXPECTATIONS)}"
        if word == "above chance" and measure not in _CHANCE:
            return f"knows no chance level of {measure}, only of {' and '.join(_CHANCE)}"
    return ""


def best(report: Report, measure: str) -> tuple[TrialReport, str]:
    """The trial that is done and does best by `measure`, and in words why; of equals the one that drifted least.

    The loss of another beta is another loss: across betas `accuracy` and `margin` are what can be compared. Raises
    ValueError where no trial is done that has the measure.
    """
    sign = -1 if measure in ("loss", "drift", "kl") else 1
    known = [(sign * figure.value, trial) for trial in report.done if (figure := trial.figure(measure))]
    if not known:
        raise ValueError(f"no trial is done and has its {_title(measure)}")

    def drift(trial: TrialReport) -> float:
        return found.value if (found := trial.figure("drift")) else math.inf

    highest = max(value for value, _ in known)
    equal = [trial for value, trial in known if value == highest]
    chosen = min(equal, key=drift)
    why = f"best {_title(measure)} of {len(known)} trials: {_value(chosen, measure, report)}"
    if len(equal) > 1:
        others = _some([trial.name for trial in equal if trial is not chosen])
        why += f", as {others}; the least drift of these"
    return chosen, why


def verdicts(report: Report) -> list[Verdict]:
    """One for each hypothesis of the experiment and each set of other overrides."""
    found = []
    for hypothesis in report.sweep.experiment.get("hypotheses") or ():
        for group in report.groups.values():
            found.append(_verdict(report, hypothesis, group))
    return found


def theory(report: Report) -> list[Finding]:
    """Whether a smaller beta drifts further, as DPO's theory says; one for each set of other overrides."""
    found = []
    for label, group in report.groups.items():
        if len({trial.trial.beta for trial in group}) < 2:
            continue
        measure = "kl" if all(trial.kl for trial in group if trial.done) and any(t.done for t in group) else "drift"
        about = " ".join(filter(None, (label, "the drift from the reference falls as beta rises")))
        done = [trial for trial in group if trial.done and trial.figure(measure)]
        steps = [
            (low, high, _compare(measure, low, high))
            for low, high in zip(done, done[1:], strict=False)
            if low.trial.beta != high.trial.beta
        ]
        words: list[Word] = [_sign(step, 1) for _, _, step in steps]
        word: Word = _all(words) if words else "cannot be told"
        if word == "supported" and len(done) < len(group):
            word = "cannot be told"
        shown = done if len(done) <= _MOST_SAID else [done[0], done[-1]]
        values = ", ".join(f"{_value(trial, measure, report)} at {trial.name}" for trial in shown)
        told = f"{_title(measure)}: {values}" if values else f"{_title(measure)} is not known of any trial"
        told += "".join(f"; {low.name} less {high.name}: {_sureness(step)}" for low, high, step in steps[:_MOST_SAID])
        known = {trial.trial.number for trial in done}
        absent = [trial.name for trial in group if trial.trial.number not in known]
        if absent:
            told += f"; nothing is known of {_some(absent)} yet"
        found.append(Finding(word, about, told))
    return found


def _verdict(report: Report, hypothesis: Mapping[str, Any], group: Sequence[TrialReport]) -> Verdict:
    beta = hypothesis.get("beta")
    label = group[0].label
    name = " ".join(filter(None, (str(hypothesis.get("name", "")), f"({label})" if label else "")))

    def told(word: Word, findings: Sequence[Finding] = (), why: str = "") -> Verdict:
        return Verdict(beta, name, str(hypothesis.get("claim", "")), word, tuple(findings), why)

    own = [trial for trial in group if isinstance(beta, (int, float)) and _same(trial.trial.beta, float(beta))]
    if not own:
        return told("cannot be told", why="no trial of this sweep has this beta")
    expect = hypothesis.get("expect")
    if expect is None:
        return told("cannot be told", why="the hypothesis does not say which figure it is about (key `expect`)")
    wrong = problem(expect)
    if wrong:
        return told("cannot be told", why=f"`expect` {wrong}")
    if not own[0].done:
        return told("cannot be told", why=f"its trial has no result ({own[0].why})")
    findings = [_finding(report, measure, word, own[0], group) for measure, word in expect.items()]
    return told(_all([finding.word for finding in findings]), findings)


def _finding(report: Report, measure: str, expected: str, own: TrialReport, group: Sequence[TrialReport]) -> Finding:
    about = f"{_title(measure)} {expected}"
    figure = own.figure(measure)
    if figure is None:
        missing = "was not evaluated (report --evaluate)" if measure == "kl" else "is not known"
        return Finding("cannot be told", about, f"{_title(measure)} {missing}")
    value = f"{_value(own, measure, report)} at {own.name}"
    if expected == "above chance":
        over = Figure(figure.value - _CHANCE[measure], figure.error, figure.at_most, figure.pairs)
        return Finding(_sign(over, 1), about, f"{value}, chance is {_CHANCE[measure]:g}; difference {_sureness(over)}")
    others = [trial for trial in group if trial is not own and not _same(trial.trial.beta, own.trial.beta)]
    known = [trial for trial in others if trial.done and trial.figure(measure)]
    if not known:
        return Finding("cannot be told", about, f"{value}; there is nothing to compare it with")
    direction = 1 if expected.endswith("highest") else -1
    compared = [(trial, _compare(measure, own, trial)) for trial in known]
    word = _all([_sign(difference, direction) for _, difference in compared])
    if expected.startswith("not "):
        word = _not(word)
    absent = [trial.name for trial in others if not (trial.done and trial.figure(measure))]
    # A beta that is still missing may be higher yet; that another one is higher already stays so.
    if absent and (word == "contradicted") == expected.startswith("not ") and word != "cannot be told":
        word = "cannot be told"
    nearest, difference = min(compared, key=lambda it: direction * it[1].value)
    text = f"{value}; {_value(nearest, measure, report)} at {nearest.name}; difference {_sureness(difference)}"
    if absent:
        text += f"; nothing is known of {_some(absent)} yet"
    return Finding(word, about, text)


def _compare(measure: str, one: TrialReport, other: TrialReport) -> Figure:
    """One less the other: on the same pairs where both have them, else as if measured on different ones."""
    first, second = one.figure(measure), other.figure(measure)
    assert first is not None and second is not None
    paired = None
    if one.per_pair and other.per_pair and one.trial.beta is not None and other.trial.beta is not None:
        paired = figures.difference(measure, one.per_pair, other.per_pair, (one.trial.beta, other.trial.beta))
    if paired is not None and (measure == "kl" or first.error is not None and not first.at_most):
        return paired
    error = None
    if first.error is not None and second.error is not None:
        error = math.hypot(first.error, second.error)
    pairs = min((figure.pairs for figure in (first, second) if figure.pairs), default=None)
    return Figure(first.value - second.value, error, first.at_most or second.at_most, pairs)


def _sign(difference: Figure, direction: int) -> Word:
    if difference.error is None:
        return "cannot be told"
    if difference.value * direction > SURE * difference.error:
        return "supported"
    return "contradicted" if difference.value * direction < -SURE * difference.error else "cannot be told"


def _all(words: Sequence[Word]) -> Word:
    if "contradicted" in words:
        return "contradicted"
    return "cannot be told" if "cannot be told" in words else "supported"


def _not(word: Word) -> Word:
    return {"supported": "contradicted", "contradicted": "supported", "cannot be told": "cannot be told"}[word]  # type: ignore[return-value]


def _sureness(difference: Figure) -> str:
    """`+2.861 ± 0.310 (9.2 standard errors; 32 pairs, one by one)`"""
    if difference.error is None:
        return f"{difference.value:+.3g}, of unknown standard error"
    times = abs(difference.value) / difference.error if difference.error else math.inf
    times = math.floor(10 * times) / 10 if math.isfinite(times) else times  # 1.96 is not yet 2.0
    least = "at least " if difference.at_most else ""
    pairs = f"; {difference.pairs} pairs" if difference.pairs else ""
    pairs += ", one by one" if difference.paired else ""
    figure = figures.pm(difference.value, difference.error, "+.0f", difference.at_most)
    return f"{figure} ({least}{times:.1f} standard errors{pairs})"


def _value(trial: TrialReport, measure: str, report: Report) -> str:
    figure = trial.figure(measure)
    assert figure is not None
    unit = UNITS[measure].format(per=report.per)
    return f"{figures.pm(figure.value, figure.error, FORMS[measure], figure.at_most)}{' ' if unit else ''}{unit}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_SAID]) + (f" and {len(names) - _MOST_SAID} more" if len(names) > _MOST_SAID else "")


def _title(measure: str) -> str:
    return {"kl": "KL to the reference", "margin": "reward margin"}.get(measure, measure)


def _same(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and math.isclose(one, other, rel_tol=1e-9)
