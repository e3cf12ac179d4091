"""What makes the reference policy's log-probabilities others, and what does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from omegaconf import DictConfig, OmegaConf

from launcher.train.nemo_aligner.savings import reference_key


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    for name in ("base.nemo", "train.jsonl"):
        (tmp_path / name).write_bytes(b"x" * 50)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    return OmegaConf.create(
        {
            "trainer": {"precision": "32", "accelerator": "cpu"},
            "pretrained_checkpoint": {"restore_from_path": str(tmp_path / "base.nemo")},
            "model": {
                "num_layers": 2,
                "seed": 1,
                "global_batch_size": 8,
                "tensor_model_parallel_size": 1,
                "tokenizer": {"type": str(tmp_path / "tokenizer")},
                "dpo": {"ref_policy_kl_penalty": 0.1, "log_prob_forward_micro_batch_size": 1},
                "peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": 8}},
                "optim": {"lr": 1e-3},
                "data": {
                    "data_prefix": {"train": [str(tmp_path / "train.jsonl")]},
                    "data_impl": "jsonl",
                    "append_eod": False,
                    "seq_length": 64,
                    "num_workers": 0,
                },
            },
        }
    )


def model(config: DictConfig, tmp_path: Path) -> dict[str, Any]:
    return reference_key.of_model(config, config.model, {"length_multiple": 1}, tmp_path / "notes")


def pairs(config: DictConfig, tmp_path: Path) -> dict[str, Any]:
    return reference_key.of_pairs(config, "train", tmp_path / "notes")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.dpo.ref_policy_kl_penalty", 0.5),
        ("model.optim.lr", 1.0),
        ("model.peft.lora_tuning.adapter_dim", 64),
        ("model.seed", 2),
        ("model.global_batch_size", 16),
        ("model.data.num_workers", 2),
    ],
)
def test_trials_of_a_sweep_share_it(config: DictConfig, tmp_path: Path, key: str, value: Any) -> None:
    before = model(config, tmp_path), pairs(config, tmp_path)
    OmegaConf.update(config, key, value)
    assert (model(config, tmp_path), pairs(config, tmp_path)) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.precision", "bf16"),
        ("model.num_layers", 3),
        ("model.tensor_model_parallel_size", 2),
        ("model.peft.peft_scheme", "none"),
        ("model.dpo.log_prob_forward_micro_batch_size", 2),
        ("model.a_key_that_nobody_knows_yet", True),
    ],
)
def test_another_model_or_way_to_run_it(config: DictConfig, tmp_path: Path, key: str, value: Any) -> None:
    before = model(config, tmp_path)
    OmegaConf.update(config, key, value, force_add=True)
    assert model(config, tmp_path) != before


@pytest.mark.parametrize("name", ["base.nemo", "tokenizer/tokenizer.json"])
def test_changed_files_of_the_model(config: DictConfig, tmp_path: Path, name: str) -> None:
    before = model(config, tmp_path)
    change(tmp_path / name)
    assert model(config, tmp_path) != before


def test_the_same_tokenizer_elsewhere_is_the_same(config: DictConfig, tmp_path: Path) -> None:
    before = model(config, tmp_path)
    (tmp_path / "tokenizer").rename(tmp_path / "of_another_trial")
    config.model.tokenizer.type = str(tmp_path / "of_another_trial")
    assert model(config, tmp_path) == before


def test_rows_and_how_they_become_tokens(config: DictConfig, tmp_path: Path) -> None:
    before = pairs(config, tmp_path)
    config.model.data.append_eod = True
    ended = pairs(config, tmp_path)
    change(tmp_path / "train.jsonl")
    assert len({str(one) for one in (before, ended, pairs(config, tmp_path))}) == 3


def test_code_of_the_launcher_is_part_of_it(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model(config, tmp_path)
    monkeypatch.setattr(reference_key, "_CODE", ("standins",))
    assert model(config, tmp_path) != before


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"trainer.accelerator": "gpu", "trainer.precision": "bf16"}, ""),
        ({"trainer.accelerator": "gpu", "trainer.precision": "bf16", "model.micro_batch_size": 2}, "rounded"),
        (
            {"trainer.accelerator": "gpu", "trainer.precision": "bf16", "compute.positions_per_micro_batch": 9},
            "rounded",
        ),
        ({"trainer.accelerator": "gpu", "trainer.precision": "32", "model.micro_batch_size": 2}, ""),
        ({"trainer.accelerator": "cpu", "trainer.precision": "bf16", "model.micro_batch_size": 2}, ""),
        ({"model.hidden_dropout": 0.1}, "hidden_dropout"),
        ({"model.context_parallel_size": 2}, "context"),
        ({"model.data.reset_attention_mask": True}, "beside"),
        ({"model.data.data_impl": "packed_jsonl"}, "packed"),
        ({"paths.cache": None}, "paths.cache"),
    ],
)
def test_where_they_cannot_be_kept(config: DictConfig, changes: dict[str, Any], word: str) -> None:
    for key, value in {"paths.cache": "/cache", "model.micro_batch_size": 1, **changes}.items():
        OmegaConf.update(config, key, value, force_add=True)
    why = reference_key.unsupported_reason(config, config.model)
    assert word in why and bool(why) == bool(word)


def change(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(b"z" * stat.st_size)
    os.utime(path, ns=(stat.st_mtime_ns + 1, stat.st_mtime_ns + 1))


def test_what_chooses_a_gpus_kernels_makes_another_key(
    config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformer Engine and cuDNN choose kernels by variables and versions, and kernels round differently."""
    monkeypatch.setattr(reference_key, "_device", lambda accelerator: "H100")
    monkeypatch.delenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", raising=False)
    config.trainer.accelerator = "gpu"
    before = model(config, tmp_path)
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    assert model(config, tmp_path) != before
    config.trainer.accelerator = "cpu"
    assert model(config, tmp_path)["kernels"] == {}
