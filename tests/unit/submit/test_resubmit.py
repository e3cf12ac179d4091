"""`retry` submits an evaluation that ended early again, once its request is held against the cluster."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.findings import Refused
from launcher.slurm import client
from launcher.submit import resubmit
from launcher.sweep.folder import Sweep
from launcher.trial_config.validate import load
from tests.unit.check.test_slurm_check import site
from tests.unit.conftest import changed


@pytest.fixture
def sweep(composed: Any, tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """sweep(asked, ...): a trial for each, with this under evaluation.slurm; sbatch takes every script."""
    config, _ = composed("cluster=slurm", "model=tiny", "data=sample", "evaluation.after_training=true")
    monkeypatch.setattr(resubmit, "Site", site)
    taken = iter(range(70, 80))
    monkeypatch.setattr(client, "submit", lambda path, receipt: next(taken))

    def make(*asked: dict[str, Any]) -> Sweep:
        changes = [{f"evaluation.slurm.{key}": value for key, value in keys.items()} for keys in asked]
        trials = [([], changed(config, each).plain) for each in changes]
        made = Sweep.create(tmp_path / "s", command=["main.py"], experiment={"name": "x"}, trials=trials)
        (made.folder / "slurm").mkdir()
        return made

    return make


def test_trials_whose_evaluations_ask_for_the_same_share_an_array(sweep: Any) -> None:
    made = sweep({}, {"time": 5}, {})
    assert resubmit.evaluate_again(made, made.trials) == [(70, [0, 2]), (71, [1])]
    assert [job.trials for job in Sweep.load(made.folder).jobs] == [[0, 2], [1]]
    scripts = [(made.folder / "slurm" / f"evaluate{number}.sbatch").read_text() for number in (0, 1)]
    assert ["#SBATCH --time=5\n" in text for text in scripts] == [False, True]


@pytest.mark.parametrize(("chosen", "cluster"), [({}, "lab"), ({"clusters": "green,blue"}, "green,blue")])
def test_what_is_submitted_names_its_cluster(sweep: Any, chosen: dict[str, str], cluster: str) -> None:
    """Until sbatch names the one that took it, with its id."""
    made = sweep({})
    config = load(made.folder / "0")
    (made.folder / "0" / "config.yaml").write_text(yaml.safe_dump(changed(config, {"cluster.sbatch": chosen}).plain))
    resubmit.submit_again(made, made.trials)
    resubmit.evaluate_again(made, made.trials)
    jobs = Sweep.load(made.folder).submitted()
    assert [(job.kind, job.cluster) for job in jobs] == [
        (kind, cluster) for kind in ("slurm", "evaluation", "evaluation")
    ]
    assert not any(job.cluster_named for job in jobs)
    for script in ("0", "evaluate0"):
        (made.folder / "slurm" / f"{script}.id").write_text("70;green\n")
    jobs = Sweep.load(made.folder).submitted()
    assert [(job.id, job.cluster, job.cluster_named) for job in jobs[:2]] == [
        ("70", "green", True),
        ("71", "green", True),
    ]


def test_no_array_is_larger_than_the_cluster_takes(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resubmit.evaluation, "findings", lambda *args: [])
    made = sweep({}, {}, {})
    lab = types.SimpleNamespace(max_array_size=2, name="lab")
    monkeypatch.setattr(resubmit, "Site", lambda: types.SimpleNamespace(cluster=lab))
    assert resubmit.evaluate_again(made, made.trials) == [(70, [0, 1]), (71, [2])]


def test_what_this_cluster_would_never_start_is_refused(sweep: Any) -> None:
    made = sweep({}, {"partition": "gone"})
    with pytest.raises(Refused) as refused:
        resubmit.evaluate_again(made, made.trials)
    (finding,) = refused.value.findings
    assert str(finding).startswith("evaluation.slurm.partition=gone: no such partition")
    assert "config.yaml" in finding.remedy and "python -m launcher evaluate" in finding.remedy
    assert Sweep.load(made.folder).jobs == [] and not list((made.folder / "slurm").glob("*")), "nothing was submitted"
