"""The report as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launcher.report import beside, judge, literature, text
from launcher.report.gather import Report
from launcher.report.measure import Measure

_MARKUP = re.compile(r"([\\`*_<\[\]|])")


def render(report: Report, picture: str | None = None) -> str:
    """`picture` is the name of the PNG in the same folder."""
    lines = [f"# {_escaped(text.heading(report))}", "", f"{_escaped(text.summary(report))}. {text.when(report)}", ""]
    if warnings := text.warnings(report):
        lines += [*(f"> **{_escaped(warning)}**" for warning in warnings), ""]
    main, answers = text.columns(), text.answer_columns(report)
    lines += [*_table(report, main), "", text.measured(report), "", text.note(main, report), ""]
    if answers:
        lines += ["## What the policies say", "", *_table(report, answers), "", *text.answers_measured(report), ""]
        lines += [text.note(answers, report), ""]
    for heading, heads, rows in beside.tables(report):
        lines += [f"### {heading}", "", _pipes(heads), _pipes(["---"] * len(heads)), *map(_pipes, rows), ""]
    if picture:
        lines += [f"![plots]({picture})", ""]
    lines += ["## Verdicts", "", *_verdicts(judge.judge(report)), ""]
    lines += [
        "<details><summary>What others found at which beta</summary>",
        "",
        _pipes(["source", "beta", "beside it"]),
    ]
    lines += [
        _pipes(["---"] * 3),
        *(_pipes(row) for row in literature.TABLE),
        "",
        literature.NOTE,
        "",
        "</details>",
        "",
    ]
    heads, rows, total = text.cost_table(report)
    lines += ["## Cost", "", _pipes(heads), _pipes(["---", *["---:"] * (len(heads) - 1)])]
    lines += [*map(_pipes, rows), "", total]
    if report.differences:
        heads, rows = text.differences(report)
        lines += ["", "## What differs between the configs", "", _pipes(heads), _pipes(["---"] * len(heads))]
        lines += [f"| `{key}` {_pipes(values)}" for key, *values in rows]
    return "\n".join(lines) + "\n"


def _table(report: Report, shown: Sequence[Measure]) -> list[str]:
    seeds, other = text.most_seeds(report) > 1, any(text.besides(pool) for pool in report.pools)
    heads = ["trial", "beta", *(["seeds"] if seeds else []), *(it.title for it in shown)]
    rows = [
        [
            pool.numbers,
            "-" if pool.beta is None else f"{pool.beta:g}",
            *([str(len(pool.known))] if seeds else []),
            *(text.shown(pool, measure) for measure in shown),
            *([text.besides(pool)] if other else []),
        ]
        for pool in report.pools
    ]
    lines = [_pipes(heads + ["besides"] * other), _pipes(["---:"] * len(heads) + ["---"] * other)]
    return [*lines, *map(_pipes, rows)]


def _verdicts(judgement: judge.Judgement) -> list[str]:
    if not judgement.findings and not judgement.verdicts:
        return ["There is no verdict: the sweep has no hypothesis and fewer than two betas."]
    lines = []
    for verdict in judgement.verdicts:
        claim = f"{_escaped(verdict.heading)}** ({_escaped(verdict.claim)})"
        lines.append(f"- **{claim}: **{verdict.outcome}**. {_escaped(verdict.why)}".rstrip())
        lines += [f"  - {_escaped(it.about)}: {it.outcome}. {_escaped(it.sentence)}" for it in verdict.findings]
    lines += [f"- {_escaped(it.about)}: **{it.outcome}**. {_escaped(it.sentence)}" for it in judgement.theory]
    return [*lines, "", text.rule(judgement)]


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(' '.join(cell.split())) for cell in cells)} |"


def _escaped(value: str) -> str:
    """Show names and claims as they are written: no markup, no HTML."""
    return _MARKUP.sub(r"\\\1", value)
