"""The report as one HTML file that opens offline: it contains its styles and plots, and loads nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from launcher import __version__, redact
from launcher.report import beside, compared_answers, judge, literature, measures, plots, text
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.pools import Pool

_MOST_CARDS = 6
_MOST_COMPARED = 8  # pools whose samples are shown side by side
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class FigureLine(NamedTuple):
    """One measure on a card."""

    measure: Measure
    label: str
    shown: str
    bar: float | None
    """Length of the bar, in percent; None: no bar."""
    chance: float | None
    """Position of the chance level on the bar, in percent."""


class Card(NamedTuple):
    """The main figures of a pool."""

    pool: Pool
    colour: str
    lines: list[FigureLine]


class SampleLine(NamedTuple):
    """One answer to a sample's prompt. `colour` is "" if no policy wrote it."""

    name: str
    colour: str
    text: str
    ended: bool
    checks: Sequence[tuple[str, bool]] = ()
    """(id of an instruction, whether the answer follows it)."""


def render(report: Report) -> str:
    """The page. Raises Refused if matplotlib is missing."""
    plots.check()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["printable"] = printable
    judgement = judge.judge(report)
    heads, costs, total = text.cost_table(report)
    colours = plots.colours(report)
    return environment.get_template("report.html.j2").render(
        report=report,
        heading=text.heading(report),
        summary=text.summary(report),
        when=text.when(report),
        warnings=text.warnings(report),
        cards=[_card(report, pool, colours[pool]) for pool in report.pools] if len(report.pools) <= _MOST_CARDS else [],
        judgement=judgement,
        rule=text.rule(judgement),
        tables=_tables(report),
        beside=beside.tables(report),
        shown=text.shown,
        colours=colours,
        measured=text.measured(report),
        seeds=text.most_seeds(report) > 1,
        plots=plots.svgs(report),
        samples=compared(report, colours) or samples(report, colours),
        literature=literature,
        cost_heads=heads,
        costs=costs,
        cost_total=total,
        differences=text.differences(report),
        facts=_facts(report),
        version=__version__,
    )


def _tables(report: Report) -> list[tuple[str, list[Measure], list[str]]]:
    """(heading, columns, notes below) of each table of figures."""
    main, answers = text.columns(), text.answer_columns(report)
    tables = [("Figures", main, [text.note(main, report)])]
    if answers:
        notes = [*text.answers_measured(report), text.note(answers, report)]
        tables.append(("What the policies say", answers, notes))
    return tables


def compared(report: Report, colours: dict[Pool, str]) -> list[tuple[str, list[SampleLine]]]:
    """(prompt, all policies' answers) of what `evaluate` had them answer; [] if it did not."""
    return [
        (prompt.text, [_line(it, colours) for it in prompt.answers]) for prompt in compared_answers.compared(report)
    ]


def _line(it: compared_answers.ComparedAnswer, colours: dict[Pool, str]) -> SampleLine:
    return SampleLine(it.name, colours[it.pool] if it.pool else "", it.text, it.ended, it.checks)


def samples(report: Report, colours: dict[Pool, str]) -> list[tuple[str, list[SampleLine]]]:
    """(prompt, answers: the chosen response, the reference policy's, every policy's). Of several seeds, the first's."""
    answers_by_prompt: dict[str, list[SampleLine]] = {}
    sampled = [(pool, trials[0]) for pool in report.pools if (trials := [it for it in pool.trials if it.samples])]
    for pool, trial in sampled[:_MOST_COMPARED]:
        for sample in trial.samples:
            answers = answers_by_prompt.setdefault(
                sample.prompt,
                [
                    SampleLine("chosen in the data", "", sample.chosen, True),
                    SampleLine("reference", "", sample.reference, sample.reference_ended),
                ],
            )
            answers.append(SampleLine(pool.name, colours[pool], sample.policy, sample.policy_ended))
    return list(answers_by_prompt.items())


def printable(value: str) -> str:
    """Replace control characters, which HTML does not allow and untrained models write."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value).strip()


def _card(report: Report, pool: Pool, colour: str) -> Card:
    lines = []
    for measure in measures.REGISTRY.values():
        if not measure.glance or (measure.table != "evaluation" and not text.known(report, measure)):
            continue
        estimate = pool.estimates.get(measure.key)
        bar = None
        if measure.share:
            bar = 100 * estimate.value if estimate else 0.0
        elif measure is report.drift_measure:
            largest = max(
                (it.estimates[measure.key].value for it in report.pools if measure.key in it.estimates), default=0
            )
            bar = 100 * estimate.value / largest if estimate and largest else 0.0
        chance = 100 * measure.chance if measure.share and measure.chance is not None else None
        lines.append(FigureLine(measure, measure.label(report.per), text.shown(pool, measure), bar, chance))
    return Card(pool, colour, lines)


def _facts(report: Report) -> list[tuple[str, str]]:
    """Facts about the sweep and its first result: command, commit, device, versions."""
    data = report.sweep.data
    git = data.get("git")
    facts = [
        ("sweep", f"{data.get('id', '')}, {report.sweep.folder}"),
        ("command", " ".join(redact.command(data.get("command") or ()))),
        ("commit", f"{git['commit']}{' with changes' if git['dirty'] else ''}" if git else ""),
    ]
    result = report.done[0].result if report.done else None
    if result is not None:
        facts += [
            ("device", result.device),
            ("precision", result.precision),
            ("training pairs", f"{result.train_pairs:,}" if result.train_pairs is not None else ""),
            ("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())),
        ]
        if result.trainable is not None and result.parameters is not None:
            facts.append(("trainable", f"{result.trainable:,} of {result.parameters:,} parameters"))
    return [(name, value) for name, value in facts if value]
