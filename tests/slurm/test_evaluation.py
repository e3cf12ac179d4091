"""The array that evaluates a sweep's trials, on a real Slurm: which element starts when, status, cancel, retry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.commands import load
from launcher.slurm import client
from launcher.status.trial_state import Look
from launcher.sweep import evaluation
from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.existing import Existing
from tests.slurm.sweeps import make, submit, until


def command(name: str, *words: str) -> int:
    loaded = load(name)
    return loaded.run(loaded.parser.parse_args(words))


def evaluated(look: Look, number: int) -> str:
    return look.trials[number].evaluation


def began(sweep: Sweep, number: int) -> float:
    """When the evaluation of a trial began, in seconds since 1970."""
    settings: dict[str, Any] = json.loads((sweep.trials[number].folder / "evaluation" / "settings.json").read_text())
    return float(settings["began"])


def ended(sweep: Sweep, number: int) -> float:
    return (sweep.trials[number].folder / "result.json").stat().st_mtime


def test_each_is_evaluated_once_it_has_trained_and_a_failed_one_holds_back_no_other(
    own_cluster: Cluster, cluster: Existing, tmp_path: Path
) -> None:
    behave = {"ranks": 1, "evaluation": "done", "evaluation gpus": 2}
    sweep = make(tmp_path / "sweep", behave, {**behave, "all": "exit"}, {**behave, "seconds": 25})
    submit(sweep)
    (train, evaluate) = Sweep.load(sweep.folder).submitted()
    assert (train.kind, evaluate.kind) == ("slurm", "evaluation") and list(evaluate.trials) == [0, 1, 2]
    look = until(sweep, lambda look: evaluated(look, 0) == "evaluated", 60)
    assert look.trials[2].state == "RUNNING", "the first was evaluated while the last was still training"
    assert evaluated(look, 2) == "evaluation waits" and look.trials[2].evaluation_job == f"{evaluate.id}_2"
    look = until(sweep, lambda look: evaluated(look, 2) == "evaluated", 90)
    assert [state.state for state in look.trials] == ["DONE", "FAILED", "DONE"]
    assert began(sweep, 2) > ended(sweep, 2)
    until(sweep, lambda look: not look.trials[1].evaluation_job, 30)
    assert client.squeue([int(evaluate.id)]) == [], "that of the failed trial waits no longer"
    assert look.exit_code == 1
    settings = json.loads((sweep.trials[0].folder / "evaluation" / "settings.json").read_text())
    assert settings["gpus"] == "2"


def test_cancel_and_retry_know_it(own_cluster: Cluster, cluster: Existing, tmp_path: Path, capsys: Any) -> None:
    behave = {"ranks": 1, "evaluation": "hang once"}
    sweep = make(tmp_path / "sweep", behave, {**behave, "evaluation": "exit"})
    submit(sweep)
    look = until(sweep, lambda look: evaluated(look, 0) == "answered 0 of 5 prompts", 60)
    assert look.trials[0].state == "DONE" and look.trials[0].evaluation_job
    assert command("cancel", "-y", "0", str(sweep.folder)) == 0
    assert look.trials[0].evaluation_job in capsys.readouterr().out
    until(sweep, lambda look: "ended early" in evaluated(look, 0) and "ended early" in evaluated(look, 1), 60)
    assert command("retry", "-y", "0", str(sweep.folder)) == 0
    look = until(sweep, lambda look: evaluated(look, 0) == "evaluated", 60)
    assert [state.state for state in look.trials] == ["DONE", "DONE"] and look.exit_code == 0
    assert len(sweep.load(sweep.folder).submitted()) == 3, "nothing was trained again"


def test_a_trial_that_goes_on_is_evaluated_at_its_end(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> None:
    """In a job of its own where the site forbids requeues: what waits for the first job then waits for both."""
    again = {"starts": [{"all": "exit", "saves": 4}, {"all": "done", "seconds": 8}]}
    behave = {"ranks": 1, "evaluation": "done"}
    sweep = make(
        tmp_path / "sweep",
        {**behave, "seconds": 20},
        {**behave, **again},
        {**behave, "seconds": 1},
        requeue=False,
        max_restarts=2,
    )
    submit(sweep)
    look = until(sweep, lambda look: all(evaluated(look, number) == "evaluated" for number in range(3)), 150)
    assert [state.state for state in look.trials] == ["DONE", "DONE", "DONE"]
    assert all(began(sweep, number) > ended(sweep, number) for number in range(3))
    assert began(sweep, 2) < ended(sweep, 0)


def test_a_requeued_trial_is_evaluated_at_its_end(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> None:
    behave = {"ranks": 1, "evaluation": "done"}
    sweep = make(
        tmp_path / "sweep", {**behave, "starts": [{"all": "exit", "saves": 4}, {"all": "done"}]}, max_restarts=2
    )
    submit(sweep)
    until(sweep, lambda look: evaluated(look, 0) == "evaluated", 150)
    assert began(sweep, 0) > ended(sweep, 0)
    assert evaluation.read(sweep.trials[0].folder).complete
