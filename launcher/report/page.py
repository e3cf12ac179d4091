"""The report as one HTML file that opens offline: styles and plots are in it, and it asks nobody for anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from launcher import __version__
from launcher.report import judge, plots, text
from launcher.report.gather import Report, TrialReport

_MOST_CARDS = 6
_MOST_COMPARED = 8  # trials whose samples are shown side by side
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(report: Report) -> str:
    """The page. Raises Refused where matplotlib is missing."""
    plots.check()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["shown"] = text.shown
    environment.filters["printable"] = printable
    template = environment.get_template("report.html.j2")
    heads, costs, total = text.costs(report)
    colours = plots.colours(report)
    return template.render(
        report=report,
        heading=text.heading(report),
        summary=text.summary(report),
        when=text.when(report),
        warnings=text.warnings(report),
        cards=[_card(report, trial, colours) for trial in report.trials] if len(report.trials) <= _MOST_CARDS else [],
        verdicts=judge.verdicts(report),
        theory=judge.theory(report),
        columns=text.COLUMNS,
        colours=colours,
        progress=text.progress,
        measured=text.measured(report),
        note=text.note(report),
        plots=plots.svgs(report),
        samples=samples(report),
        cost_heads=heads,
        costs=costs,
        cost_total=total,
        differences=text.differences(report),
        facts=_facts(report),
        version=__version__,
    )


def samples(report: Report) -> list[dict[str, Any]]:
    """A prompt each: the chosen response, the reference policy's answer, and (trial, answer) of every policy."""
    found: dict[str, dict[str, Any]] = {}
    for trial in [trial for trial in report.trials if trial.samples][:_MOST_COMPARED]:
        for sample in trial.samples:
            if not isinstance(sample, dict) or not isinstance(sample.get("prompt"), str):
                continue
            entry = found.setdefault(
                sample["prompt"],
                {
                    "prompt": sample["prompt"],
                    "answers": [("chosen in the data", None, str(sample.get("chosen", "")), True)],
                },
            )
            if len(entry["answers"]) == 1:
                ended = bool(sample.get("reference_ended"))
                entry["answers"].append(("reference", None, str(sample.get("reference", "")), ended))
            ended = bool(sample.get("policy_ended"))
            entry["answers"].append((trial.name, trial.trial.number, str(sample.get("policy", "")), ended))
    return list(found.values())


def printable(value: str) -> str:
    """Without control characters, which HTML does not allow and untrained models love."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value).strip()


def _card(report: Report, trial: TrialReport, colours: dict[int, str]) -> dict[str, Any]:
    measure = "kl" if all(it.kl for it in report.trials) else "drift"
    drift = trial.figure(measure)
    largest = max((figure.value for it in report.trials if (figure := it.figure(measure))), default=0.0)
    return {
        "trial": trial,
        "colour": colours[trial.trial.number],
        "bar": measure,
        "drift_share": 100 * drift.value / largest if drift and largest else 0,
        "accuracy_share": 100 * trial.accuracy.value if trial.accuracy else 0,
    }


def _facts(report: Report) -> list[tuple[str, str]]:
    """What it was made with: of the sweep, and of its first result."""
    data = report.sweep.data
    git = data.get("git") or {}
    result = report.done[0].result if report.done else {}
    facts = [
        ("sweep", f"{data.get('id', '')}, {report.sweep.folder}"),
        ("command", " ".join(data.get("command") or ())),
        ("commit", f"{git.get('commit', '')}{' with changes' if git.get('dirty') else ''}" if git else ""),
        ("device", str(result.get("device", ""))),
        ("precision", str(result.get("precision", ""))),
        ("training pairs", str((result.get("pairs") or {}).get("train", ""))),
        ("trainable", _parameters(result)),
        ("versions", ", ".join(f"{name} {value}" for name, value in (result.get("versions") or {}).items())),
    ]
    return [(name, value) for name, value in facts if value]


def _parameters(result: Any) -> str:
    trainable, whole = result.get("trainable_parameters"), result.get("parameters")
    return f"{trainable:,} of {whole:,} parameters" if isinstance(trainable, int) and isinstance(whole, int) else ""
