"""Sweepers that choose trials by the results of earlier ones wait for real values; others are told of none."""

from __future__ import annotations

import pytest
import yaml

from tests.slurm.desk import BETA, Desk

pytestmark = pytest.mark.slurm


def test_optuna(desk: Desk) -> None:
    """Two batches of two trials, each an array of its own, one sweep; the best is by the values the trials wrote."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler.seed=1",
    )
    done = desk.main("-m", *search, f"{BETA}=interval(0.05,0.5)", timeout=300)
    assert done.returncode == 0, done.stderr
    trials = desk.sweep().trials
    values = {(trial.result() or {})["beta"]: (trial.result() or {})["final"]["val/loss"] for trial in trials}
    assert len(values) == 4 and all(0.05 <= beta <= 0.5 for beta in values)
    assert [job.trials for job in desk.sweep().submitted()] == [[0, 1], [2, 3]]
    found = yaml.safe_load((desk.sweep_folder / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(min(values.values()))


def test_a_trial_without_a_value_stops_optuna(desk: Desk) -> None:
    """It is not told a made-up value."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    desk.env["STANDIN_FAILS"] = "0.2"
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    done = desk.main("-m", *search, f"{BETA}=choice(0.2)", timeout=300)
    assert done.returncode == 1
    assert "trial 0 (beta 0.2) has no result" in done.stderr and "Traceback" not in done.stderr
    assert len(desk.sweep().trials) == 1
