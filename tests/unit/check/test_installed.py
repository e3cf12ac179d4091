"""Trials that would run the Python that submits are refused if it has no NeMo, before they wait for their turn."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.check import installed
from launcher.compose.trials import PlannedTrial
from launcher.findings import Refused
from launcher.nemo import versions
from launcher.submit import resubmit, to_local, to_slurm
from launcher.sweep.folder import Sweep
from launcher.trial_config.config import TrialConfig
from tests.unit.check.test_slurm_check import site
from tests.unit.conftest import changed
from tests.unit.submit.test_prepare import launcher

ENGINE = "tests.unit.train.second_engine"
Trial = Callable[..., TrialConfig]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """A light install: the launcher's own packages."""
    monkeypatch.setattr(installed, "_unsupported", lambda: versions.unsupported_reason({"nemo-aligner": "0.7.0"}))


@pytest.fixture
def trial(composed: Any, workspace: Path) -> Trial:
    """trial(cluster, key=value under `cluster`, ...)"""

    def make(cluster: str = "slurm", engine: str = "nemo_aligner", after: bool = False, **keys: Any) -> TrialConfig:
        image = ["cluster.container.image=/nemo.sif"] if cluster == "slurm_apptainer" else []
        config, found = composed(f"cluster={cluster}", "model=tiny", "data=sample", *image)
        assert found == []
        changes = {f"cluster.{key}": value for key, value in keys.items()}
        return changed(config, {**changes, "engine": engine, "evaluation.after_training": after})

    return make


@pytest.mark.parametrize(
    ("keys", "refused", "warned"),
    [
        ({}, True, False),
        ({"cluster": "local"}, True, False),
        ({"setup": ["module load nemo"]}, False, True),
        ({"environment": {"PYTHONPATH": "/nemo"}}, False, True),
        ({"environment": {"NCCL_DEBUG": "INFO"}}, True, False),
        ({"python": "/shared/nemo-env/bin/python"}, False, False),
        ({"cluster": "slurm_pyxis"}, False, False),
        ({"cluster": "slurm_apptainer"}, False, False),
        ({"engine": ENGINE}, False, False),
        ({"cluster": "local", "engine": ENGINE}, False, False),
    ],
)
def test_a_light_install(trial: Trial, light: None, keys: dict[str, Any], refused: bool, warned: bool) -> None:
    config = trial(**keys)
    found, unsure = installed.findings(config), installed.warnings(config)
    assert (bool(found), bool(unsure)) == (refused, warned)
    for finding in (*found, *unsure):
        assert f"trials run {sys.executable}, and there nemo_toolkit and megatron-core are not installed" in finding.why
        local = config.cluster.is_local
        assert str(finding).startswith("cluster=local: " if local else "cluster.python=null: ")
        remedy = "pip install -e '.[train]'" if local else "cluster.python=/shared/nemo-env/bin/python"
        assert remedy in finding.remedy
        assert local or "cluster=slurm_pyxis, cluster=slurm_apptainer" in finding.remedy


def test_where_nemo_is_installed(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"nemo-aligner": "0.7.0", "nemo_toolkit": "2.1.0", "megatron-core": "0.10.0"}
    monkeypatch.setattr(installed, "_unsupported", lambda: versions.unsupported_reason(there))
    assert installed.findings(trial()) == installed.findings(trial("local")) == installed.warnings(trial()) == []


def test_both_launchers_and_retry_refuse_it(
    trial: Trial, light: None, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, warn = to_slurm.checks(launcher(workspace / "s"), site())
    planned = [PlannedTrial([], trial()), PlannedTrial([], trial(comment="x"))]
    assert [finding.where for finding in check(planned)] == ["cluster.python"]
    setup = [PlannedTrial([], trial(setup=["module load nemo"]))]
    assert check(setup) == []
    assert "cluster.python" in [finding.where for finding in warn(setup, workspace / "s")]
    assert [finding.where for finding in to_local._check([PlannedTrial([], trial("local"))])] == ["cluster"]
    trials = [([], planned[0].config.plain)]
    sweep = Sweep.create(workspace / "s", command=[], experiment={"name": "x"}, trials=trials)
    monkeypatch.setattr(resubmit, "Site", site)
    with pytest.raises(Refused, match="cluster.python=null"):
        resubmit.submit_again(sweep, sweep.trials)
    assert Sweep.load(sweep.folder).jobs == []


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ({}, True),
        ({"cluster": "local"}, True),
        ({"after": False}, False),
        ({"python": "/shared/nemo-env/bin/python"}, False),
        ({"cluster": "slurm_pyxis"}, False),
        ({"engine": ENGINE}, False),
    ],
)
def test_an_evaluation_that_would_not_run(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, workspace: Path, keys: dict[str, Any], warned: bool
) -> None:
    monkeypatch.setattr(installed, "_unsupported", lambda: "")
    config = trial(**{"after": True, **keys})
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find("json"))
    found = [str(finding) for finding in installed.warnings(config)]
    assert bool(found) == warned
    for one in found:
        assert one.startswith("evaluation.after_training=true: trials run ") and "lacks peft:" in one
        assert "'.[train]'" in one
    if config.cluster.is_local:
        assert [str(finding) for finding in to_local._warn([PlannedTrial([], config)], workspace)] == found
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("json"))
    assert installed.warnings(config) == []


@pytest.mark.parametrize(
    ("cluster", "asked", "warned"),
    [
        ("local", {"engine": "vllm"}, "null: "),
        ("slurm", {"engine": "vllm"}, "null: "),
        ("slurm_pyxis", {"engine": "vllm"}, ""),
        ("local", {"engine": "vllm", "vllm_python": sys.executable}, ""),
        ("local", {"engine": "auto"}, ""),
        ("local", {"engine": "auto", "vllm_python": "/nowhere/python"}, "/nowhere/python: "),
        ("local", {"engine": "transformers", "vllm_python": "/nowhere/python"}, ""),
    ],
)
def test_a_vllm_that_would_not_run(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: str, asked: dict[str, str], warned: str
) -> None:
    monkeypatch.setattr(installed, "_unsupported", lambda: "")
    config = changed(trial(cluster, after=True), {f"evaluation.answers.{key}": value for key, value in asked.items()})
    (tmp_path / "vllm").mkdir()  # such as its environment, where this was started: no vLLM
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [str(finding) for finding in installed.warnings(config)]
    assert len(found) == bool(warned) and all(f"vllm_python={warned}" in one for one in found)
