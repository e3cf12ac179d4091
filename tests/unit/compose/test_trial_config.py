"""The shipped configs have the types that they must have, and whatever departs from it is named with the key to use."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.findings import Finding, Refused
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.types import FreeKeys
from launcher.trial_config.validate import fields, leaves, load
from tests.unit.conftest import changed


@pytest.mark.parametrize("model", ["llama3_8b", "smollm2_135m", "tiny"])
@pytest.mark.parametrize("data", ["sample", "hh_rlhf"])
@pytest.mark.parametrize("experiment", ["single", "beta_ablation"])
def test_shipped_configs(composed: Any, model: str, data: str, experiment: str) -> None:
    _, findings = composed(f"model={model}", f"data={data}", f"experiment={experiment}")
    assert findings == []


def test_a_value_that_may_be_a_number_or_a_text_is_offered_once(composed: Any) -> None:
    _, findings = composed("model=tiny", "trainer.precision=16")
    assert "must be one of auto, bf16, bf16-mixed, 32;" in str(findings[0])


def test_llama3_8b_carries_the_ablation(composed: Any) -> None:
    config, _ = composed("model=llama3_8b")
    tuning = config.model.peft.lora_tuning
    assert (tuning.adapter_dim, tuning.alpha, tuning.adapter_dropout) == (32, 16, 0.05)
    assert tuning.target_modules == ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]
    assert config.trainer.precision == "bf16"
    optim = config.model.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("fused_adam", 5e-6, 0.01)
    assert (optim.sched.name, optim.sched.warmup_steps) == ("CosineAnnealing", 100)
    loop = config.trainer.dpo
    assert (loop.max_epochs, loop.max_steps, loop.val_check_interval) == (1, -1, 0.1)
    assert config.trainer.log_every_n_steps == 10
    model = config.model
    assert (model.micro_batch_size, model.encoder_seq_length, model.data.seq_length) == (1, 2048, 2048)
    assert model.dpo.ref_policy_kl_penalty == config.beta == 0.1
    assert model.dpo.log_prob_forward_micro_batch_size == 1
    assert config.pretrained_checkpoint.restore_from_path == "/checkpoints/llama3_8b_base.nemo"


def found(config: TrialConfig, changes: dict[str, Any], added: frozenset[str] = frozenset()) -> list[Finding]:
    try:
        changed(config, changes, added)
    except Refused as refused:
        return refused.findings
    return []


@pytest.mark.parametrize("beta", [0, -0.1, math.nan, math.inf, "text", None, True, [0.1]])
def test_impossible_betas(composed: Any, beta: Any) -> None:
    config, _ = composed("model=tiny")
    (finding,) = found(config, {"model.dpo.ref_policy_kl_penalty": beta})
    assert finding.where == "model.dpo.ref_policy_kl_penalty"
    assert "above 0" in finding.why


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("trainer.dpo.val_check_interval", [1, 7, 0.5, 1.0], [0, -1, 1.5, 0.0, True, "0.5", None]),
        ("trainer.dpo.limit_val_batches", [1, 1.0, 0.5, 3], [0, -1, True, "1.0", None]),
        ("trainer.dpo.max_steps", [-1, 1], [0, -2, -1.0, 1.0, True]),
        ("trainer.dpo.gradient_clip_val", [None, 0, 1.5], [-1, True, "1"]),
        ("trainer.devices", [1], [0, 1.0, True, "1", None]),
        ("trainer.precision", ["32", 32, "bf16"], [32.0, "16", True, None]),
        ("trainer.logger", [False], [True, 0, None]),
        ("exp_manager.exp_dir", [None], ["x", False]),
        ("model.mcore_gpt", [True], [False, 1]),
        ("model.data.append_eod", [True, False], [1, "true", None]),
        ("model.optim.betas", [[0.9, 0.98], [0, 0.5]], [[0.9], [0.9, 1], [0.9, True], [0.9, -0.1], 0.9]),
        ("model.peft.lora_tuning.layer_selection", [None, [1, 3]], [[True], ["1"], 1]),
        ("model.data.data_prefix.train", [["a"]], [[], [""], "a", [1], ["a", "b"], ["0.5", "a", "0.5", "b"]]),
        ("experiment.name", ["a", 2024], ["", " ", None, True]),
        ("experiment.hypotheses", [[], [{"beta": 1, "name": "a", "claim": "b"}]], [[{"beta": 1}], {}, ["a"]]),
        ("cluster.setup", [[], ["module load x"]], [["a\nb"], "module load x"]),
    ],
)
def test_types_are_strict(composed: Any, key: str, good: list[Any], bad: list[Any]) -> None:
    config, _ = composed("cluster=slurm", "model=tiny", "data=sample")
    for value in good:
        assert found(config, {key: value}) == [], value
    for value in bad:
        (finding,) = found(config, {key: value})
        assert finding.where == key and finding.why.startswith("must be "), value


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [(1, 60), ("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("1-12", 129600), ("1-02:30", 95400), ("0-00:00:30", 30)],
)
def test_time_limits(composed: Any, limit: int | str, seconds: float) -> None:
    config, _ = composed("cluster=slurm", "model=tiny", "data=sample")
    assert changed(config, {"cluster.time": limit}).cluster.time_limit_s == seconds


@pytest.mark.parametrize("limit", [0, "0", "0:00", -5, 1.5, True, "soon", "1h", "1:2:3:4", "1-", ""])
def test_what_is_no_time_limit(composed: Any, limit: Any) -> None:
    config, _ = composed("cluster=slurm", "model=tiny", "data=sample")
    (finding,) = found(config, {"cluster.time": limit})
    assert finding.where == "cluster.time" and "D-HH:MM:SS" in finding.why


@pytest.mark.parametrize(
    ("habit", "use"),
    [
        ("model.restore_from_path=a", "pretrained_checkpoint.restore_from_path"),
        ("model.data.train_ds.file_path=a", "model.data.data_prefix.train"),
        ("model.dpo.loss_type=dpo", "model.dpo.preference_loss"),
        ("model.peft.lora_tuning.dropout=0.1", "model.peft.lora_tuning.adapter_dropout"),
        ("lora_tuning.dropout=0.1", "model.peft.lora_tuning.adapter_dropout"),
        ("trainer.val_check_interval=10", "trainer.dpo.val_check_interval"),
    ],
)
def test_habits_are_answered_with_the_key_to_use(composed: Any, habit: str, use: str) -> None:
    _, findings = composed("model=tiny", "++" + habit)
    assert [f.where for f in findings] == [habit.partition("=")[0]]
    assert use in findings[0].remedy


def test_all_findings_at_once(composed: Any) -> None:
    words = ("trainer.devces=2", "model.optim.lr=fast", "model.dpo.ref_policy_kl_penalty=-1", "model.seed=1.5")
    _, findings = composed("model=tiny", *("++" + word for word in words))
    assert sorted(f.where for f in findings) == sorted(word.partition("=")[0] for word in words)
    assert "trainer.devices" in next(f for f in findings if f.where == "trainer.devces").remedy


def test_a_deleted_key_is_missed(composed: Any) -> None:
    _, findings = composed("model=tiny", "~model.dpo.ref_policy_kl_penalty")
    assert [(f.where, f.why) for f in findings] == [("model.dpo.ref_policy_kl_penalty", "is missing")]


def test_keys_for_the_base_model_may_be_forced(composed: Any) -> None:
    config, _ = composed("model=tiny")
    added = {"model.rotary_base": 500000}
    assert [finding.where for finding in found(config, added)] == ["model.rotary_base"]
    assert found(config, added, frozenset(added)) == []
    assert changed(config, added, frozenset(added)).model_keys["rotary_base"] == 500000


def test_fusions_can_be_switched_on(composed: Any) -> None:
    """The converter leaves them off; one is switched on by itself, see test_fused_activation.py."""
    config, _ = composed("model=llama3_8b")
    added = {"model.apply_rope_fusion": True, "model.bias_activation_fusion": True}
    keys = changed(config, added, frozenset(added)).model_keys
    assert keys["apply_rope_fusion"] is keys["bias_activation_fusion"] is True


def test_a_config_that_was_written_is_read_with_the_keys_that_were_added(composed: Any, tmp_path: Path) -> None:
    config, _ = composed("model=tiny")
    written = changed(config, {"model.rotary_base": 500000}, frozenset({"model.rotary_base"}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(written.plain))
    assert load(tmp_path) == written and load(tmp_path).plain == written.plain


def test_every_key_in_the_tree_has_a_field(composed: Any) -> None:
    """A key in configs/ that the types forgot would be refused at every user's first command."""
    config, _ = composed("model=tiny")
    known = dict(fields())
    free = tuple(f"{key}." for key, field in known.items() if field.annotation == FreeKeys)
    assert [key for key, _ in leaves(config.plain) if key not in known and not key.startswith(free)] == []


def test_an_interpolation_to_nothing(composed: Any) -> None:
    _, findings = composed("model=tiny", "model.seed=${nowhere}")
    assert any("cannot be resolved" in f.why for f in findings)
