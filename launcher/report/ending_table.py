"""The table that is printed after a run: a short report, with the report's own sentences and verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from launcher.report import judge, text
from launcher.report.gather import Report, gather
from launcher.report.measure import Measure
from launcher.report.pools import Pool
from launcher.status.trial_state import TrialState
from launcher.sweep.folder import Sweep

_WIDTH = 80
_LONGEST_REASON = 90


def render(sweep: Sweep, states: Iterable[TrialState] = ()) -> str:
    """At most 80 columns wide, except for reasons and other overrides. `states` explain why a trial has no result."""
    report = gather(sweep, list(states))
    lines = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in _lines(report)]
    return "\n".join([*_table(report, text.columns()), *_answers(report), *lines])


def _answers(report: Report) -> list[str]:
    """The table of what the policies say; [] if no trial's answers were measured."""
    shown = text.answer_columns(report)
    if not shown:
        return []
    lines = text.answers_measured(report)
    return ["", *_table(report, shown), *(textwrap.fill(it, _WIDTH, subsequent_indent="  ") for it in lines), ""]


def _table(report: Report, shown: Sequence[Measure]) -> list[str]:
    columns = [measure for measure in shown if measure.brief]
    titles = ["trial", "beta", *(measure.title for measure in columns), "seconds"]
    heads = [[title.rpartition(" ")[part] for title in titles] for part in (0, 2)]
    body = [[pool.numbers, _beta(pool), *(_value(pool, it) for it in columns), _seconds(pool)] for pool in report.pools]
    widths = [max(map(len, cells)) for cells in zip(*heads, *body, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(cells, widths, strict=True)) for cells in [*heads, *body]
    ]
    remarks = ["", "", *(_shortened(text.besides(pool)) for pool in report.pools)]
    return [f"{line}  {remark}".rstrip() for line, remark in zip(lines, remarks, strict=True)]


def _lines(report: Report) -> list[str]:
    missing = len(report.trials) - len(report.done)
    if missing == len(report.trials):
        return ["No trial has a result."]
    notes = [it.note_of(report.per) for it in text.columns() if it.brief and it.unit and it.note]
    lines = [*notes, text.measured(report)]
    if missing:
        lines.append(f"{missing} of {len(report.trials)} trials have no result.")
    lines += [*text.unequal(report), *report.troubles]
    judgement = judge.judge(report)
    for verdict in judgement.verdicts:
        why = [verdict.why, *(f"{it.about}: {it.outcome}. {it.sentence}." for it in verdict.findings)]
        lines.append(f"{verdict.heading} ({verdict.claim}): {verdict.outcome.upper()}. {' '.join(filter(None, why))}")
    lines += [f"{it.about}: {it.outcome.upper()}. {it.sentence}." for it in judgement.theory]
    if judgement.findings:
        lines.append(text.rule(judgement))
    return lines


def _beta(pool: Pool) -> str:
    return "-" if pool.beta is None else f"{pool.beta:g}"


def _value(pool: Pool, measure: Measure) -> str:
    estimate = pool.estimates.get(measure.key)
    return "-" if estimate is None else format(estimate.value, measure.form)


def _seconds(pool: Pool) -> str:
    known = [trial.cost.seconds for trial in pool.done if trial.cost.seconds is not None]
    return f"{sum(known) / len(known):.0f}" if known else "-"


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST_REASON else f"{value[: _LONGEST_REASON - 1]}…"
