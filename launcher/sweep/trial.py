"""A trial of a sweep: its config, its folder, and what it has written there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import redact, whole_file
from launcher.sweep import metrics
from launcher.sweep.metrics import TrialProgress

if TYPE_CHECKING:
    import pandas

BETA = "model.dpo.ref_policy_kl_penalty"


@dataclass(frozen=True)
class Trial:
    """One config, one folder."""

    number: int
    overrides: tuple[str, ...]
    beta: float | None
    folder: Path

    @property
    def name(self) -> str:
        """For people: `0 (beta 0.05)`."""
        return f"{self.number} (beta {self.beta:g})" if self.beta is not None else str(self.number)

    def config(self) -> dict[str, Any]:
        """The complete config, read again at each call."""
        from launcher.sweep import config_file  # PyYAML takes a while to import

        return config_file.read(self.folder / "config.yaml")

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None if it does not exist or is incomplete."""
        loaded = whole_file.read_json(self.folder / "result.json")
        return loaded if isinstance(loaded, dict) else None

    def has_result(self) -> bool:
        """Whether result.json exists. Lists the folder, so that NFS does not answer from its cache."""
        try:
            return "result.json" in os.listdir(self.folder)
        except OSError:
            return False

    def metrics_rows(self) -> list[metrics.Line]:
        """Every line of metrics.jsonl, except a truncated last one."""
        return metrics.read_all(self.folder / "metrics.jsonl")

    def metrics(self) -> pandas.DataFrame:
        """metrics.jsonl as a table for notebooks: one row per step, indexed by step, one column per metric.

        `time` is in seconds since 1970. If a restart repeated a step, the last values count. Empty if the trial has not
        begun. Raises ImportError without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Trial.metrics() needs pandas: pip install pandas (metrics_rows() does not)") from error
        rows = [row for row in self.metrics_rows() if "train/loss" in row or "val/loss" in row]
        if not rows:
            return pandas.DataFrame(columns=["time"], index=pandas.Index([], name="step", dtype="int64"))
        # a validation after a step has a line of its own: both become one row
        return pandas.DataFrame(rows).groupby("step").last()

    def progress(self, now: float | None = None) -> TrialProgress:
        """How far the trial is, from the last lines of metrics.jsonl. `now`: seconds since 1970."""
        return metrics.read_progress(self.folder / "metrics.jsonl", now)


def tracker_name(folder: Path) -> str:
    """The name of a trial's run at W&B and MLflow: the same at every start, and for the evaluation after them."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(folder.parts[-3:]))[-64:]


def labels(trials: Sequence[Trial]) -> dict[int, str]:
    """The overrides, besides beta, in which the trials differ, without secrets; by trial number."""
    shared = set.intersection(*(set(trial.overrides) for trial in trials)) if trials else set()
    return {
        trial.number: " ".join(
            redact.override(override.lstrip("+"))
            for override in trial.overrides
            if override not in shared and override.lstrip("+").partition("=")[0] != BETA
        )
        for trial in trials
    }
