"""Real NeMo-Aligner DPO on the CPU: right against transformers and peft, the same on two ranks, stopped and resumed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.integration.conftest import REPOSITORY

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

HELD_OUT = ("val/loss", "val/acc", "val/rewards_chosen_mean", "val/rewards_rejected_mean")


def in_file_order() -> None:
    """Training pairs as they stand in the file: NeMo's random sampler shuffles each rank's share by itself."""
    from launcher.train.nemo_aligner import session

    shuffled = session.batches
    session.batches = lambda *args, **kwargs: shuffled(*args, **{**kwargs, "use_random_sampler": False})


def fail_at_step_2_on_rank_1() -> None:
    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    right = PreferenceTrainer.train_single_step

    def wrong(self, global_batch):
        if self.step == 1 and os.environ["RANK"] == "1":
            raise ValueError("out of luck")
        return right(self, global_batch)

    PreferenceTrainer.train_single_step = wrong


def fail_in_the_evaluation() -> None:
    from launcher.train.nemo_aligner import evaluate

    def broken(*args):
        raise ValueError("an odd tokenizer")

    evaluate.evaluate = broken


def test_held_out_loss_and_rewards_equal_transformers_and_peft(train, new_trial, tiny_hf, pairs):
    """With dropout in training, which a validation must not have, and alpha other than the rank."""
    from tests.integration import lora_reference

    tuning = {"adapter_dim": 8, "alpha": 12, "adapter_dropout": 0.1}
    trial = train(new_trial(**{f"model__peft__lora_tuning__{key}": value for key, value in tuning.items()}))
    result = trial.result
    policy = lora_reference.with_adapters(tiny_hf, Path(result["nemo"]), rank=8, alpha=12)
    assert sum(p.numel() for n, p in policy.named_parameters() if "lora_B" in n and p.abs().max() > 0) > 0
    expected = lora_reference.held_out_metrics(policy, tiny_hf, pairs["validation"], beta=0.1)
    assert abs(expected["val/rewards_chosen_mean"]) > 0.5, "too little was learnt for the comparison to mean anything"
    for key in HELD_OUT:
        assert result["final"][key] == pytest.approx(expected[key], abs=1e-3), key


def test_what_a_trial_leaves(train, new_trial):
    trial = train(new_trial())
    result = trial.result
    assert trial.exit_codes == [0]
    assert result["baseline"]["val/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert trial.values("train/loss")[1] == pytest.approx(math.log(2), abs=1e-4)
    assert result["final"]["val/loss"] < 0.65
    assert result["best"]["val/loss"] <= result["final"]["val/loss"]
    assert (result["steps"], result["consumed_samples"], result["ranks"]) == (6, 24, 1)
    assert result["pairs"] == {"train": 24, "validation": 8}
    assert (result["baseline"]["val/pairs"], result["final"]["val/pairs"]) == (4, 8)  # the first batch; both
    assert result["beta"] == 0.1
    # rank x (inputs + outputs) of qkv (64 -> 128), dense (64 -> 64), fc1 (64 -> 320), fc2 (160 -> 64), in two layers
    assert result["trainable_parameters"] == 2 * 8 * (192 + 128 + 384 + 224)
    assert sorted(trial.values("train/loss")) == [1, 2, 3, 4, 5, 6]
    assert sorted(trial.values("val/loss")) == [0, 3, 6]
    phases = [line["phase"] for line in trial.lines if "phase" in line]
    assert phases[0] == "starting"
    assert phases[-1] == "done"
    assert Path(result["checkpoint"]).exists()
    assert list((trial.folder / "results").glob("events.out.tfevents.*"))
    said = trial.said()
    for word in ("beta       0.1", "14,848,", "24 train, 8 validation", "6 of 4 pairs", str(trial.folder), "6/6 train"):
        assert word in said


def test_two_ranks_give_the_loss_of_one(train, new_trial):
    one = train(new_trial("one"), change=in_file_order)
    two = train(new_trial("two", trainer__devices=2), ranks=2, change=in_file_order)
    assert two.exit_codes == [0, 0], two.said()
    assert two.result["ranks"] == 2
    for key in ("train/loss", "train/grad_norm", "train/rewards_chosen_mean", *HELD_OUT):
        assert two.values(key) == pytest.approx(one.values(key), abs=1e-3), key


def test_bf16_can_be_forced(train, new_trial):
    whole, half = train(new_trial("32")), train(new_trial("bf16", trainer__precision="bf16"))
    assert half.result["precision"] == "bf16"
    assert half.result["baseline"]["val/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert half.values("train/loss") == pytest.approx(whole.values("train/loss"), abs=0.02)
    assert half.values("train/loss") != whole.values("train/loss")


def test_resumed_trial_is_as_if_never_stopped(train, new_trial):
    """Stopped by the time limit after the first step, then run again."""
    folder = new_trial("stopped", trainer__max_time="00:00:00:00", exp_manager__max_time_per_run="00:00:00:00")
    stopped = train(folder)
    assert stopped.exit_codes == [0], stopped.said()
    assert not (folder / "result.json").exists()
    assert stopped.lines[-1]["phase"] == "stopped"
    assert list(stopped.values("train/loss")) == [1]

    config = OmegaConf.load(folder / "config.yaml")
    config.trainer.max_time = config.exp_manager.max_time_per_run = None
    OmegaConf.save(config, folder / "config.yaml")
    resumed, whole = train(folder), train(new_trial("whole"))
    assert "from step 1" in resumed.said()
    again = [line["step"] for line in resumed.lines if "train/loss" in line]
    assert again == [1, 2, 3, 4, 5, 6]
    for key in ("train/loss", "train/lr", "train/consumed_samples"):
        assert resumed.values(key) == pytest.approx(whole.values(key), abs=1e-4), key
    assert resumed.result["final"]["val/loss"] == pytest.approx(whole.result["final"]["val/loss"], abs=1e-4)
    assert resumed.result["consumed_samples"] == 24

    done = train(folder)  # once more: nothing to do
    assert done.exit_codes == [0]
    assert len(done.lines) == len(resumed.lines)


def test_error_on_another_rank_fails_the_trial(train, new_trial):
    folder = new_trial(trainer__devices=2)
    processes = train.start(folder, ranks=2, change=fail_at_step_2_on_rank_1)
    trial = train.wait(folder, processes)
    assert all(trial.exit_codes), trial.exit_codes
    assert "ValueError: out of luck" in trial.said()
    assert not (folder / "result.json").exists()


def test_an_error_in_the_evaluation_does_not_fail_a_trained_trial(train, new_trial):
    trial = train(new_trial(), change=fail_in_the_evaluation)
    assert trial.exit_codes == [0], trial.said()
    assert trial.result["steps"] == 6
    assert trial.result["evaluation"] == {"failed": True, "skipped": "it failed: ValueError: an odd tokenizer"}


def test_ranks_that_do_not_fit_the_config_are_refused(new_trial):
    """From a shell, as one process, where the config wants two."""
    command = [sys.executable, "-m", "launcher.train", str(new_trial(trainer__devices=2))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: trainer.devices=2: ")


def corrected_and_deterministic() -> None:
    """At the first step NeMo and Megatron are what standins/everywhere.py makes of them, and torch is strict."""
    import gc

    import torch
    from megatron.core.tensor_parallel.layers import LinearWithFrozenWeight
    from nemo_aligner.algorithms import dpo

    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    fit = PreferenceTrainer.fit

    def checked(self):
        assert dpo.clear_memory is gc.collect
        assert LinearWithFrozenWeight.backward.__module__.endswith("standins.everywhere")
        assert torch.are_deterministic_algorithms_enabled() and self.model.cfg.deterministic_mode
        fit(self)

    PreferenceTrainer.fit = checked


@pytest.mark.slow
def test_deterministic_algorithms_change_nothing_on_a_cpu(train, new_trial):
    """And every operation of a trial has a deterministic implementation, at least on a CPU: torch would raise."""
    usual = train(new_trial("usual", trainer__precision="bf16"))
    strict = new_trial("strict", trainer__precision="bf16", deterministic=True)
    strict = train(strict, change=corrected_and_deterministic)
    assert strict.values("train/loss") == usual.values("train/loss"), strict.said()
    assert strict.values("val/loss") == usual.values("val/loss")
    assert strict.result["evaluation"]["per_pair"] == usual.result["evaluation"]["per_pair"]
