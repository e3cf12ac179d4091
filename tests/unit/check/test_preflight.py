"""What would fail in the job is refused before it: rules between keys, files, folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.check import preflight
from launcher.compose.trials import PlannedTrial
from launcher.nemo.gpt_config import DIVISION
from tests.unit.conftest import changed, row


@pytest.fixture(autouse=True)
def fresh_file_checks() -> None:
    """Files are looked at once a command; tests change them in between."""
    preflight._nemo_file.cache_clear()
    preflight._jsonl.cache_clear()
    preflight._packed.cache_clear()


def findings(composed: Any, workspace: Path, *overrides: str) -> list[str]:
    config, found = composed("model=tiny", *overrides)
    assert found == []
    return [str(f) for f in preflight.findings([PlannedTrial([], config)], workspace / "runs" / "s")]


def test_a_good_trial(composed: Any, workspace: Path) -> None:
    assert findings(composed, workspace) == []


def write_packs(folder: Path, number: int) -> list[str]:
    """Three files of packs, and the overrides that name them."""
    np = pytest.importorskip("numpy")
    for split in ("train", "validation", "test"):
        np.save(folder / f"{split}.npy", np.array([{}] * number))
    prefix = ",".join(f"{split}:[{folder}/{split}.npy]" for split in ("train", "validation", "test"))
    return ["model.data.data_impl=packed_jsonl", f"model.data.data_prefix={{{prefix}}}"]


def test_packed_pairs_are_counted_in_packs(composed: Any, workspace: Path) -> None:
    words = [*write_packs(workspace, 12), "trainer.accelerator=gpu"]
    assert findings(composed, workspace, *words) == []
    (found,) = findings(composed, workspace, *words, "model.micro_batch_size=2")
    assert found.startswith("model.micro_batch_size=2: packed pairs are read one pack at a time")
    (found,) = findings(composed, workspace, *words, "model.data.append_eod=true")
    assert found.startswith("model.data.append_eod=true: does nothing to packed pairs") and "--prompt-format" in found
    assert findings(composed, workspace, "model.data.append_eod=true") == []
    preflight._packed.cache_clear()
    found = findings(composed, workspace, *write_packs(workspace, 3), "trainer.accelerator=gpu")
    assert "has 3 rows, fewer than model.global_batch_size=4" in found[0]


@pytest.mark.parametrize(
    ("overrides", "visible", "refused"),
    [
        (["trainer.accelerator=cpu"], "0", True),
        ([], "", True),
        ([], "0", False),
        (["cluster=slurm"], "", False),  # what a login node has says nothing
    ],
)
def test_packs_need_a_gpu(
    composed: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], visible: str, refused: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = findings(composed, workspace, *write_packs(workspace, 12), *overrides)
    assert [one.partition(": ")[0] for one in found] == ["model.data.data_impl=packed_jsonl"] * refused
    assert all("write jsonl" in one for one in found)


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["trainer.devices=3"], "model.global_batch_size=4", "write 3"),
        (["model.micro_batch_size=3"], "model.global_batch_size=4", "write 3"),
        (["model.tensor_model_parallel_size=2"], "model.tensor_model_parallel_size=2", "divides"),
        (["model.dpo.log_prob_forward_micro_batch_size=3"], "log_prob_forward_micro_batch_size=3", "write 1"),
        (["model.optim.name=distributed_fused_adam"], "model.optim.name=distributed_fused_adam", "fused_adam"),
        (["+model.optim.bucket_cap_mb=200"], "model.optim.bucket_cap_mb=200", "~model.optim.bucket_cap_mb"),
        (["trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=3"], "trainer.dpo.save_interval=3", "write 2"),
        (["model.optim.sched.warmup_steps=50"], "model.optim.sched.warmup_steps=50", "write 0"),
        (["model.optim.sched.min_lr=1"], "model.optim.sched.min_lr=1", "lower"),
        (["model.global_batch_size=9"], "validation.jsonl", "at most 8"),
        (["trainer.dpo.limit_val_batches=0.4"], "trainer.dpo.limit_val_batches=0.4: leaves no batch of the 2", "1 for"),
        (["trainer.dpo.limit_train_batches=0.2"], "trainer.dpo.limit_train_batches=0.2: leaves no step of", "1 for"),
    ],
)
def test_rules(composed: Any, workspace: Path, overrides: list[str], key: str, remedy: str) -> None:
    found = findings(composed, workspace, *overrides)
    assert any(key in finding and remedy in finding for finding in found), found


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("context_parallel_size", 2, "write 1"),
        ("expert_model_parallel_size", 2, "write 1"),
        ("virtual_pipeline_model_parallel_size", 2, "write null"),
        ("fsdp", True, "write false"),
        ("fsdp", 1, "write false"),
        ("virtual_pipeline_model_parallel_size", 1, "write null"),
        ("context_parallel_size", None, "write 1"),
    ],
)
def test_ways_to_divide_the_work_that_were_never_tried(
    composed: Any, workspace: Path, key: str, value: object, remedy: str
) -> None:
    config, _ = composed("model=tiny", "trainer.devices=2")

    def found(value: object) -> list[str]:
        trial = changed(config, {f"model.{key}": value}, frozenset({f"model.{key}"}))
        return [str(f) for f in preflight.findings([PlannedTrial([], trial)], workspace / "runs" / "s")]

    assert found(DIVISION[key]) == []
    (refused,) = found(value)
    assert refused.startswith(f"model.{key}={str(value).lower()}: is not supported") and remedy in refused


def test_files_are_named(composed: Any, workspace: Path) -> None:
    (workspace / "models" / "tiny.nemo").unlink()
    bad = workspace / "data" / "sample" / "train.jsonl"
    bad.write_text(row(1) + "{\n")
    found = findings(composed, workspace)
    assert any("tiny.nemo: no such file" in finding for finding in found)
    assert any(f"{bad}:2" in finding for finding in found)


def test_the_sweep_folder_must_be_new(composed: Any, workspace: Path) -> None:
    (workspace / "runs" / "s").mkdir(parents=True)
    assert any("exists already" in finding for finding in findings(composed, workspace))


def test_the_same_finding_in_every_trial_is_said_once(composed: Any, workspace: Path) -> None:
    config, _ = composed("model=tiny", "trainer.devices=3")
    assert len(preflight.findings([PlannedTrial([], config)] * 3, workspace / "runs" / "s")) == 1


def test_pairs_too_long_are_warned_of(composed: Any, workspace: Path) -> None:
    path = workspace / "data" / "sample" / "train.jsonl"
    lengths = {"unit": "tokens", "train": {"max": 300, "histogram": {"<= 256": 14, "<= 384": 2}}}
    record = {"files": {path.name: {"bytes": path.stat().st_size}}, "lengths": lengths}
    (path.parent / "dataset.json").write_text(json.dumps(record))
    preflight._longer.cache_clear()
    config, _ = composed("model=tiny")
    trials = [PlannedTrial([], config)] * 2
    assert preflight.findings(trials, workspace / "runs" / "s") == []
    (warning,) = preflight.warnings(trials, workspace / "runs" / "s")
    assert str(warning).startswith(f"{path}: up to 2 rows are longer than model.encoder_seq_length=256")
