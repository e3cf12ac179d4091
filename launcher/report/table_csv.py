"""The report as CSV: one row for each trial, for a spreadsheet or a script."""

from __future__ import annotations

import csv
import io
from typing import Any

from launcher import redact
from launcher.report import measures
from launcher.report.gather import Report
from launcher.report.trials import TrialReport


def render(report: Report) -> str:
    """Errors have columns of their own, which are empty if an error is not known."""
    rows = [_row(trial) for trial in report.trials]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _row(trial: TrialReport) -> dict[str, object]:
    cost = trial.cost
    row: dict[str, Any] = {
        "trial": trial.trial.number,
        "beta": trial.beta,
        "seed": trial.seed,
        "overrides": " ".join(redact.command(trial.trial.overrides)),
        "state": trial.state or trial.why,
        "step": trial.step,
        "max_steps": trial.max_steps,
        "pairs": trial.validated,
    }
    for key in measures.REGISTRY:
        estimate = trial.estimates.get(key)
        row[key] = estimate.value if estimate else None
        row[f"{key}_error"] = estimate.error if estimate else None
    return row | {
        "errors_at_most": int(any(estimate.at_most for estimate in trial.estimates.values())),
        "ranks": cost.ranks,
        "device": cost.device,
        "rank_hours": None if cost.hours is None else f"{cost.hours:.6g}",
        "seconds": cost.seconds,
        "waited_seconds": None if cost.waited is None else round(cost.waited, 1),
        "restarts": cost.restarts,
    }
