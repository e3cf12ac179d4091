"""Another engine than NeMo-Aligner needs a module and its name in the config, and nothing else changes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launcher.engines import ENGINES
from launcher.findings import Refused
from launcher.local import run as local
from launcher.machine import Machine
from launcher.sweep.folder import Sweep
from launcher.train import engine
from tests.integration.minimal_trial import write_pairs

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[3]
SECOND_ENGINE = {"engine": "tests.unit.train.second_engine", "lr": 0.5, "batch": 4, "epochs": 2}


def test_a_second_engine_trains_a_sweep_through_the_local_runner(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pairs = write_pairs(tmp_path / "train.jsonl", 16)
    own = {**SECOND_ENGINE, "data": {"train": str(pairs)}}
    shape = {"trainer": {"devices": 1, "num_nodes": 1}}
    trials = [([f"beta={beta}"], {**own, **shape, "beta": beta}) for beta in (0.1, 0.5)]
    sweep = Sweep.create(tmp_path / "sweep", command=[], experiment={}, trials=trials)
    outcomes = local.run(sweep, slots=1, machine=Machine(cores=2, memory_gb=8.0))
    assert [outcome.state for outcome in outcomes] == ["DONE", "DONE"], outcomes
    for trial, beta in zip(sweep.trials, (0.1, 0.5), strict=True):
        result = trial.result()
        assert (result["beta"], result["steps"], result["consumed_samples"]) == (beta, 8, 32)
        assert result["baseline"]["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert result["final"]["val/loss"] < 0.69
        assert result["evaluation"] == {"skipped": "a bag of words has no exact KL"}


@pytest.mark.parametrize(
    ("fault", "why"), [("raise", "rank 1: RuntimeError: no room for the logits"), ("kill", "rank 1 ended with")]
)
def test_a_rank_that_fails_alone_in_the_evaluation_fails_no_trial(
    tmp_path: Path, monkeypatch, fault: str, why: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pairs = write_pairs(tmp_path / "train.jsonl", 16)
    config = {
        **SECOND_ENGINE,
        "beta": 0.1,
        "data": {"train": str(pairs)},
        "trainer": {"devices": 2, "num_nodes": 1},
        "fault_in_evaluation": fault,
    }
    sweep = Sweep.create(tmp_path / "sweep", command=[], experiment={}, trials=[([], config)])
    outcomes = local.run(sweep, slots=1, grace_s=1.0, machine=Machine(cores=2, memory_gb=8.0))
    assert [outcome.state for outcome in outcomes] == ["DONE"], outcomes
    result = sweep.trials[0].result()
    assert result["steps"] == 8 and result["final"]["val/loss"] < 0.69
    assert result["evaluation"]["failed"] and why in result["evaluation"]["skipped"]
    assert not (sweep.trials[0].folder / "trained.json").exists()


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(Refused, match=r"engine=nemo_alinger: .*nemo_aligner"):
        engine.load(OmegaConf.create({"engine": "nemo_alinger"}))
    with pytest.raises(Refused, match=r"engine=no\.such\.module: .*PYTHONPATH"):
        engine.load(OmegaConf.create({"engine": "no.such.module"}))


def test_a_misspelt_engine_is_found_before_submission(composed) -> None:
    _, findings = composed("engine=nemo_alinger")
    assert [(finding.where, "nemo_aligner" in finding.why) for finding in findings] == [("engine", True)]


def test_every_engine_has_the_functions_of_the_protocol() -> None:
    for name in ENGINES:
        module = engine.load(OmegaConf.create({"engine": name}))
        assert all(callable(getattr(module, function, None)) for function in ("configure", "build", "shut_down")), name
