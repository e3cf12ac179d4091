"""The shipped configs satisfy the schema, and whatever departs from it is named with the key to use."""

import math
from typing import Any

import pytest

from launcher.compose import schema


@pytest.mark.parametrize("model", ["llama3_8b", "smollm2_135m", "tiny"])
@pytest.mark.parametrize("data", ["sample", "hh_rlhf"])
@pytest.mark.parametrize("experiment", ["single", "beta_ablation"])
def test_shipped_configs(composed: Any, model: str, data: str, experiment: str) -> None:
    _, findings = composed(f"model={model}", f"data={data}", f"experiment={experiment}")
    assert findings == []


def test_llama3_8b_carries_the_ablation(composed: Any) -> None:
    config, _ = composed("model=llama3_8b")
    tuning = config["model"]["peft"]["lora_tuning"]
    assert (tuning["adapter_dim"], tuning["alpha"], tuning["adapter_dropout"]) == (32, 16, 0.05)
    assert tuning["target_modules"] == ["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2"]
    assert config["trainer"]["precision"] == "bf16"
    optim = config["model"]["optim"]
    assert (optim["name"], optim["lr"], optim["weight_decay"]) == ("fused_adam", 5e-6, 0.01)
    assert (optim["sched"]["name"], optim["sched"]["warmup_steps"]) == ("CosineAnnealing", 100)
    dpo = config["trainer"]["dpo"]
    assert (dpo["max_epochs"], dpo["max_steps"], dpo["val_check_interval"]) == (1, -1, 0.1)
    assert config["trainer"]["log_every_n_steps"] == 10
    model = config["model"]
    assert (model["micro_batch_size"], model["encoder_seq_length"], model["data"]["seq_length"]) == (1, 2048, 2048)
    assert model["dpo"]["ref_policy_kl_penalty"] == 0.1
    assert model["dpo"]["log_prob_forward_micro_batch_size"] == 1
    assert config["pretrained_checkpoint"]["restore_from_path"] == "/checkpoints/llama3_8b_base.nemo"


@pytest.mark.parametrize("beta", [0, -0.1, math.nan, math.inf, "text", None, True, [0.1]])
def test_impossible_betas(composed: Any, beta: Any) -> None:
    config, _ = composed("model=tiny")
    config["model"]["dpo"]["ref_policy_kl_penalty"] = beta
    (finding,) = schema.check(config)
    assert finding.where == "model.dpo.ref_policy_kl_penalty"
    assert "above 0" in finding.why


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
    config["model"]["rotary_base"] = 500000
    assert [f.where for f in schema.check(config)] == ["model.rotary_base"]
    assert schema.check(config, frozenset({"model.rotary_base"})) == []


def test_every_key_in_the_tree_has_a_field(composed: Any) -> None:
    """A key in configs/ that the schema forgot would be refused at every user's first command."""
    config, _ = composed("model=tiny")
    assert {key for key, _ in schema.leaves(config)} - {"cluster.memory_gb_per_rank"} <= set(schema.FIELDS) | {
        key for key, _ in schema.leaves(config) if schema._field(key)
    }


def test_an_interpolation_to_nothing(composed: Any) -> None:
    _, findings = composed("model=tiny", "model.seed=${nowhere}")
    assert any("cannot be resolved" in f.why for f in findings)
