"""Sends the measures of an evaluated trial to the trackers that its training wrote to, as `evaluation/KEY`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.dotted_keys import at
from launcher.report import measures, recorded_scores
from launcher.sweep.trial import Trial, tracker_name

#: TensorBoard's file of an evaluation ends so, which tells it from training's.
SUFFIX = ".evaluation"


def send(trial: Trial, config: Mapping[str, Any], scored: Mapping[str, object]) -> Iterator[str]:
    """Send the measures; yields a line for each tracker that failed. A tracker never fails an evaluation."""
    values = measured(scored)
    step = int((trial.result() or {}).get("steps") or 0)
    for name, key, log in _TRACKERS:
        if not at(config, f"exp_manager.{key}"):
            continue
        try:
            log(trial, config, values, step)
        except Exception as error:  # whatever a tracker's client raises: no network, no key, no such run
            yield f"! {name} did not take the evaluation's measures: {' '.join(str(error).split())[:200]}"


def measured(scored: Mapping[str, object]) -> dict[str, float]:
    """{evaluation/KEY: value} of every measure that the scores have."""
    recorded = recorded_scores.scores(scored)
    if recorded is None:
        return {}
    values = {}
    for measure in measures.REGISTRY.values():
        if measure.table == "evaluation":
            continue
        columns = recorded.columns_for(measure)
        if columns and (known := measure.estimate(None, columns, None, None)):
            values[f"evaluation/{measure.key}"] = known.value
    return values


def _tensorboard(trial: Trial, config: Mapping[str, Any], values: Mapping[str, float], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = trial.folder / "results"
    for earlier in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:  # type: ignore[no-untyped-call]
        for key, value in values.items():
            writer.add_scalar(key, value, step)  # type: ignore[no-untyped-call]


def _wandb(trial: Trial, config: Mapping[str, Any], values: Mapping[str, float], step: int) -> None:
    import wandb

    kwargs = at(config, "exp_manager.wandb_logger_kwargs") or {}
    known = {key: kwargs[key] for key in ("project", "entity", "group", "name") if kwargs.get(key)}
    name = kwargs.get("id") or tracker_name(trial.folder)
    with wandb.init(id=name, resume="allow", dir=str(trial.folder / "results"), **known) as run:
        run.summary.update(dict(values))


def _mlflow(trial: Trial, config: Mapping[str, Any], values: Mapping[str, float], step: int) -> None:
    from mlflow import MlflowClient

    kwargs = at(config, "exp_manager.mlflow_logger_kwargs") or {}
    # As Lightning's MLFlowLogger finds it.
    uri = kwargs.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(uri or f"file:{kwargs.get('save_dir') or './mlruns'}")
    experiment = client.get_experiment_by_name(str(kwargs.get("experiment_name")))
    if experiment is None:
        raise ValueError(f"it has no experiment {kwargs.get('experiment_name')!r}")
    query = f"tags.trial = '{tracker_name(trial.folder)}'"
    runs = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        raise ValueError(f"it has no run with the tag trial={tracker_name(trial.folder)}")
    for key, value in values.items():
        client.log_metric(runs[0].info.run_id, key, value, step=step)


_Log = Callable[[Trial, Mapping[str, Any], Mapping[str, float], int], None]
_TRACKERS: tuple[tuple[str, str, _Log], ...] = (
    ("TensorBoard", "create_tensorboard_logger", _tensorboard),
    ("W&B", "create_wandb_logger", _wandb),
    ("MLflow", "create_mlflow_logger", _mlflow),
)
