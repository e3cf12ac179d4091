"""Tables of what `evaluate` did beside the trials' own answers: other policies on the same prompts (`--beside`), and
lm-eval's standard suites (`--suite`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from launcher import estimates
from launcher.report import measures, recorded, recorded_scores, trial_files
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.recorded_scores import RecordedScores
from launcher.report.trial_files import Unreadable
from launcher.sweep import evaluation

Table = tuple[str, list[str], list[list[str]]]
"""Heading, heads, rows."""


def tables(report: Report) -> list[Table]:
    """Those that there is anything for."""
    found = [_other_policies(report), _suites(report)]
    return [table for table in found if table[2]]


def _other_policies(report: Report) -> Table:
    trials = next((trial.scores for trial in report.trials if trial.scores), None)
    known = ((name, recorded_scores.scores(data)) for name, data in _folders(report, evaluation.SCORES))
    others = [(f"{name}{_otherwise(scores, trials)}", scores) for name, scores in known if scores]
    shown = [it for it in measures.REGISTRY.values() if it.table != "evaluation"]
    columns = [it for it in shown if any(_value(scores, it) for _, scores in others)]
    rows = [[name, *(_value(scores, it) or "-" for it in columns)] for name, scores in others]
    return "Other policies on the same prompts", ["policy", *(it.title for it in columns)], rows


def _otherwise(scores: RecordedScores, trials: RecordedScores | None) -> str:
    """What makes the scores incomparable with the trials', in words; "" if nothing does."""
    if trials is None:
        return ""
    keys = sorted(key for key in trials.made if scores.made.get(key) != trials.made[key])
    keys += ["prompts"] if set(scores.prompts) != set(trials.prompts) else []
    return f" (not comparable, other {', '.join(keys)}: run `evaluate --beside` again)" if keys else ""


def _value(scores: RecordedScores, measure: Measure) -> str:
    it = measure.estimate(None, scores.columns_for(measure), None, None)
    return estimates.shown(it.value, it.error, measure.form, it.at_most) if it else ""


def _suites(report: Report) -> Table:
    results = {f"reference {base}": data for base, data in _folders(report, evaluation.SUITES)}
    for trial in report.trials:
        try:
            data = trial_files.read_json(trial.trial, f"{evaluation.FOLDER}/{evaluation.SUITES}")
        except Unreadable:
            continue  # such as a link: it is treated as missing
        if data:
            results[f"trial {trial.trial.name}"] = data
    values = {name: dict(_metrics(data)) for name, data in results.items()}
    keys = list(dict.fromkeys(key for found in values.values() for key in found))
    rows = [[name, *(found.get(key, "-") for key in keys)] for name, found in values.items() if found]
    return "Standard suites, by lm-eval", ["policy", *keys], rows


def _metrics(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(`task: metric`, its value with lm-eval's standard error)"""
    for task, metrics in recorded.mapping(data.get("results")).items():
        for metric, both in recorded.mapping(metrics).items():
            value, error = map(recorded.number, both) if isinstance(both, list) and len(both) == 2 else (None, None)
            if value is not None:
                yield f"{task}: {metric}", f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _folders(report: Report, file: str) -> Iterator[tuple[str, dict[str, object]]]:
    """(name, content) of a file in the folders of the sweep's own evaluation/."""
    whole = report.sweep.folder / evaluation.FOLDER
    for name in sorted(os.listdir(whole)) if whole.is_dir() else []:
        try:
            data = trial_files.read_json(report.sweep, f"{evaluation.FOLDER}/{name}/{file}")
        except Unreadable:
            continue
        if data:
            yield name, data
