"""The report as Markdown and as CSV, and the words that all its forms share."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher import units
from launcher.report import figures, judge
from launcher.report.figures import Figure
from launcher.report.gather import Report, TrialReport

SEEDS = "One seed a beta: the errors say nothing of how another seed would have come out."


def summary(report: Report) -> str:
    """What was compared, in one line."""
    betas = sorted({trial.trial.beta for trial in report.trials if trial.trial.beta is not None})
    models = sorted({Path(str(path)).stem for trial in report.trials if (path := _model(trial.config))})
    pairs = sorted({trial.pairs for trial in report.trials if trial.pairs is not None})
    parts = [f"DPO on {', '.join(models)}" if models else "DPO"]
    if 0 < len(betas) <= 6:
        parts.append(f"beta {', '.join(f'{beta:g}' for beta in betas)}")
    elif betas:
        parts.append(f"{len(betas)} betas from {betas[0]:g} to {betas[-1]:g}")
    if pairs:
        parts.append(f"{span(pairs)} held-out pairs")
    return ", ".join(parts)


def warnings(report: Report) -> list[str]:
    """What a reader has to know before the figures."""
    found = []
    missing = [trial for trial in report.trials if not trial.done]
    if missing:
        shown = "; ".join(f"{trial.name}: {trial.why}{progress(trial)}" for trial in missing[:6])
        more = f"; and {len(missing) - 6} more" if len(missing) > 6 else ""
        found.append(f"Partial: {len(missing)} of {len(report.trials)} trials have no result ({shown}{more}).")
    if len({trial.pairs for trial in report.trials if trial.pairs is not None}) > 1:
        found.append("Not every trial was measured on as many pairs: the rows cannot be compared as they stand.")
    if len({trial.step for trial in report.done}) > 1:
        found.append("Not every trial made as many steps.")
    if len({str(trial.result.get("precision")) for trial in report.done}) > 1:
        found.append("Not every trial was computed in the same precision.")
    unevaluated = [trial.name for trial in report.done if trial.kl is None]
    if unevaluated:
        reasons = sorted({trial.skipped for trial in report.done if trial.skipped})
        why = f" ({'; '.join(reasons)})" if reasons else "; report --evaluate computes it"
        found.append(f"No exact KL of {', '.join(unevaluated[:6])}{' and more' if len(unevaluated) > 6 else ''}{why}.")
    return [*found, *report.troubles]


def progress(trial: TrialReport) -> str:
    if not trial.step:
        return ""
    return f", step {trial.step}/{trial.max_steps}" if trial.max_steps else f", step {trial.step}"


def measured(report: Report) -> str:
    """On what, after what, with which errors."""
    pairs = sorted({trial.pairs for trial in report.trials if trial.pairs is not None})
    steps = sorted({trial.step for trial in report.trials if trial.step is not None})
    text = f"Measured on {span(pairs)} held-out pairs after {span(steps)} steps; ± is one standard error over pairs"
    bounds = any(figure.at_most for trial in report.trials if (figure := trial.drift))
    return f"{text} ('≤' where only an upper bound is known). {SEEDS}" if bounds else f"{text}. {SEEDS}"


def note(report: Report) -> str:
    """What the columns are."""
    average = "" if report.per == "response" else " (averaged over its tokens)"
    return (
        f"Log-ratio: mean log-ratio of a held-out response to the reference policy{average}, nats a {report.per}, not "
        "multiplied by beta (NeMo-Aligner's rewards_*). Reward margin: beta x (log-ratio of chosen - of rejected). "
        "Drift: mean size of the two log-ratios. KL: exact, over the whole vocabulary, nats a token of the responses."
    )


def span(values: Sequence[int]) -> str:
    if not values:
        return "an unknown number of"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def shown(figure: Figure | None, form: str) -> str:
    """`0.750 ± 0.077`, `-` where nothing is known."""
    if figure is None:
        return "-"
    return figures.pm(figure.value, figure.error, form, figure.at_most)


_MOST_COLUMNS = 12
COLUMNS = (
    ("loss", "loss", ".4f"),
    ("accuracy", "accuracy", ".3f"),
    ("margin", "reward margin", "+.4f"),
    ("chosen", "log-ratio chosen", "+.3f"),
    ("rejected", "log-ratio rejected", "+.3f"),
    ("drift", "drift", ".3f"),
    ("kl", "KL", ".4f"),
)


def cost_unit(report: Report) -> str:
    devices = {trial.cost.device for trial in report.trials} - {""}
    return {frozenset({"gpu"}): "GPU-hours", frozenset({"cpu"}): "CPU-hours"}.get(frozenset(devices), "rank-hours")


def costs(report: Report) -> tuple[list[str], list[list[str]], str]:
    """(heads, a row a trial, the sum in one line)."""
    heads = ["trial", "ranks", cost_unit(report), "wall", "waited", "restarts"]
    rows = [
        [
            trial.name,
            "-" if trial.cost.ranks is None else str(trial.cost.ranks),
            "-" if trial.cost.hours is None else units.hours(trial.cost.hours),
            _clock(trial.cost.seconds),
            _clock(trial.cost.waited),
            str(trial.cost.restarts),
        ]
        for trial in report.trials
    ]
    known = [trial.cost for trial in report.trials]
    hours = sum(cost.hours or 0.0 for cost in known)
    seconds = sum(cost.seconds or 0.0 for cost in known)
    total = f"{units.hours(hours)} {cost_unit(report)} in all, {units.clock(seconds)} of wall "
    total += f"time of trials one after the other, {sum(cost.restarts for cost in known)} restarts."
    if cost_unit(report) == "CPU-hours":
        total += " CPU-hours: wall time x ranks."
    return heads, rows, total


def differences(report: Report) -> tuple[list[str], list[list[str]]]:
    """(heads, a row a key): its value in each trial; of more trials than fit side by side, its different values."""
    if len(report.trials) <= _MOST_COLUMNS:
        return ["key", *(trial.name for trial in report.trials)], [[key, *values] for key, values in report.differences]
    rows = []
    for key, values in report.differences:
        different = list(dict.fromkeys(values))
        more = f" and {len(different) - _MOST_COLUMNS} more" if len(different) > _MOST_COLUMNS else ""
        rows.append([key, ", ".join(different[:_MOST_COLUMNS]) + more])
    return ["key", "values"], rows


def markdown(report: Report, picture: str | None = None) -> str:
    """GitHub's Markdown. `picture` is the name of the PNG beside it."""
    lines = [f"# {heading(report)}", "", f"{summary(report)}. {when(report)}", ""]
    lines += [f"> **{warning}**" for warning in warnings(report)] + [""] * bool(warnings(report))
    heads = ["trial", "beta", *(name for _, name, _ in COLUMNS)]
    other = any(trial.label or not trial.done for trial in report.trials)
    lines += [_pipes(heads + ["besides"] * other), _pipes(["---:"] * len(heads) + ["---"] * other)]
    for trial in report.trials:
        cells = [str(trial.trial.number), "-" if trial.trial.beta is None else f"{trial.trial.beta:g}"]
        cells += [shown(getattr(trial, key), form) for key, _, form in COLUMNS]
        besides = ", ".join(filter(None, (trial.label, "" if trial.done else trial.why + progress(trial))))
        lines.append(_pipes(cells + [besides] * other))
    lines += ["", measured(report), "", note(report), ""]
    if picture:
        lines += [f"![plots]({picture})", ""]
    lines += ["## Verdicts", ""]
    for verdict in judge.verdicts(report):
        beta = f"{verdict.beta:g}" if isinstance(verdict.beta, (int, float)) else str(verdict.beta)
        lines.append(f"- **beta {beta}, {verdict.name}** ({verdict.claim}): **{verdict.word}**. {verdict.why}".rstrip())
        lines += [f"  - {finding.about}: {finding.word}. {finding.figure}" for finding in verdict.findings]
    lines += [f"- {one.about}: **{one.word}**. {one.figure}" for one in judge.theory(report)]
    lines += ["" if len(lines) and lines[-1] else "Nothing to judge: no hypothesis, and fewer than two betas.", ""]
    if judge.verdicts(report):
        lines += ["A verdict is on the figures listed, not on the words of the claim.", ""]
    head, rows, total = costs(report)
    lines += ["## Cost", "", _pipes(head), _pipes(["---"] + ["---:"] * (len(head) - 1)), *map(_pipes, rows), "", total]
    if report.differences:
        head, rows = differences(report)
        lines += ["", "## What differs between the configs", "", _pipes(head), _pipes(["---"] * len(head))]
        lines += [_pipes([f"`{key}`", *values]) for key, *values in rows]
    return "\n".join(lines) + "\n"


def table_csv(report: Report) -> str:
    """A row a trial; errors in columns of their own, empty where nothing is known."""
    stream = io.StringIO()
    heads = ["trial", "beta", "overrides", "state", "step", "max_steps", "pairs"]
    for key, _, _ in COLUMNS:
        heads += [key, f"{key}_error"]
    heads += ["errors_at_most", "ranks", "device", "rank_hours", "seconds", "waited_seconds", "restarts"]
    writer = csv.DictWriter(stream, heads, lineterminator="\n")
    writer.writeheader()
    for trial in report.trials:
        cost = trial.cost
        row: dict[str, Any] = {
            "trial": trial.trial.number,
            "beta": trial.trial.beta,
            "overrides": " ".join(trial.trial.overrides),
            "state": trial.state or ("DONE" if trial.done else trial.why),
            "step": trial.step,
            "max_steps": trial.max_steps,
            "pairs": trial.pairs,
            "errors_at_most": int(any(it.at_most for key, *_ in COLUMNS if (it := getattr(trial, key)))),
            "ranks": cost.ranks,
            "device": cost.device,
            "rank_hours": None if cost.hours is None else f"{cost.hours:.6g}",
            "seconds": cost.seconds,
            "waited_seconds": None if cost.waited is None else round(cost.waited, 1),
            "restarts": cost.restarts,
        }
        for key, _, _ in COLUMNS:
            figure = getattr(trial, key)
            row[key] = figure and figure.value
            row[f"{key}_error"] = figure and figure.error
        writer.writerow(row)
    return stream.getvalue()


def heading(report: Report) -> str:
    name = report.sweep.experiment.get("name") or report.sweep.folder.name
    what = "comparison" if len(report.trials) > 1 else "one trial"
    return f"{name}: {what} of {len(report.trials)} trials" if len(report.trials) > 1 else f"{name}: {what}"


def when(report: Report) -> str:
    made = datetime.fromtimestamp(report.made).astimezone()
    return f"{len(report.done)} of {len(report.trials)} trials done, as of {made:%Y-%m-%d %H:%M}."


def _model(config: Mapping[str, Any]) -> Any:
    return (config.get("pretrained_checkpoint") or {}).get("restore_from_path")


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else units.clock(seconds)
