"""The measures of an evaluation reach the trackers that training wrote to."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launcher.evaluate import trackers
from launcher.sweep.trial import tracker_name
from tests.unit import report_sweep
from tests.unit.report.test_answers import content

OFF = {"create_tensorboard_logger": False, "create_wandb_logger": False, "create_mlflow_logger": False}


@pytest.fixture
def trial(tmp_path):
    return report_sweep.finish(report_sweep.make(tmp_path / "runs" / "tune" / "today")).trials[1]


def send(trial, **on):
    return list(trackers.send(trial, {"exp_manager": {**OFF, **on}}, content(0.3)))


def test_every_measure_is_there_with_the_report_s_value():
    values = trackers.measured(content(0.3))
    assert values["evaluation/repeated"] == pytest.approx(0.35)
    assert values["evaluation/following"] == pytest.approx(0.5)
    assert values["evaluation/entropy"] == pytest.approx(0.4)
    assert trackers.measured({}) == {}


def test_tensorboard_shows_them_at_the_last_step_once(trial):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch")
    for _ in range(2):  # an evaluation that is made again
        assert send(trial, create_tensorboard_logger=True) == []
    (path,) = (trial.folder / "results").glob(f"*{trackers.SUFFIX}")
    events = accumulator.EventAccumulator(str(path)).Reload()
    (event,) = events.Scalars("evaluation/repeated")
    assert (event.step, event.value) == (trial.result()["steps"], pytest.approx(0.35))


def test_weights_and_biases_continues_the_trial_s_run(trial, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (trial.folder / "results").mkdir(exist_ok=True)
    assert send(trial, create_wandb_logger=True, wandb_logger_kwargs={"project": "dpo", "name": "beta_0.1"}) == []
    (run,) = (trial.folder / "results" / "wandb").glob("offline-run-*")
    assert run.name.endswith("tune-today-1")
    (file,) = run.glob("*.wandb")
    end = time.monotonic() + 30  # a process of W&B's own writes it, after finish() too
    while b"evaluation" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    assert b"evaluation" in file.read_bytes()


def test_mlflow_adds_them_to_the_newest_run_of_the_trial(trial, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("tune")
    earlier, newest = (
        client.create_run(experiment, start_time=began, tags={"trial": "tune-today-1"}) for began in (1, 2)
    )
    assert (
        send(trial, create_mlflow_logger=True, mlflow_logger_kwargs={"experiment_name": "tune", "tracking_uri": uri})
        == []
    )
    assert client.get_run(newest.info.run_id).data.metrics["evaluation/repeated"] == pytest.approx(0.35)
    assert client.get_run(earlier.info.run_id).data.metrics == {}


def test_a_tracker_that_fails_is_named(trial, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    (line,) = send(trial, create_wandb_logger=True)
    assert "W&B" in line and "wandb" in line


def test_a_name_is_that_of_no_other_trial(tmp_path):
    assert tracker_name(Path("/x/runs/my sweep/2026-11-26_10-00-00/2")) == "my-sweep-2026-11-26_10-00-00-2"
    assert json.dumps(tracker_name(tmp_path / ("n" * 90) / "today" / "1")).endswith('today-1"')
