"""What the NeMo-Aligner engine checks by figures alone: the loss before the first step, sequence parallelism."""

from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from launcher.findings import Refused
from launcher.train.nemo_aligner import baseline, parallelism


def trial(precision: str = "bf16", micro: int = 1, forward: int = 1, beta: float = 0.1, **model):
    dpo = {"log_prob_forward_micro_batch_size": forward, "ref_policy_kl_penalty": beta}
    keys = {"micro_batch_size": micro, "global_batch_size": 64, "dpo": dpo, "peft": {"peft_scheme": "lora"}, **model}
    return OmegaConf.create({"trainer": {"precision": precision}, "model": keys})


def validation(loss: float, spread: float = 0.0) -> dict[str, float]:
    return {"preference_loss": loss, "rewards_all_std": spread, "pairs": 64}


@pytest.mark.parametrize("config", [trial(), trial("32", 1, 4)], ids=["same shapes", "fp32"])
def test_the_loss_is_ln_2_where_policy_and_reference_round_alike(config) -> None:
    baseline.check(config, validation(math.log(2) + 9e-4, 0.2))
    for loss in (math.log(2) + 2e-3, math.nan):
        with pytest.raises(RuntimeError, match="do not agree"):
            baseline.check(config, validation(loss, 0.2))


def test_micro_batches_of_different_sizes_may_round_differently() -> None:
    """0.2 nats of noise in a log-ratio: the mean over 64 pairs is uncertain by 0.035, times beta / 2."""
    config = trial(micro=1, forward=4)
    assert baseline.tolerance(config, validation(0.7, 0.2)) == pytest.approx(0.0082, abs=2e-4)
    baseline.check(config, validation(math.log(2) + 4e-3, 0.2))
    with pytest.raises(RuntimeError):
        baseline.check(config, validation(math.log(2) + 4e-3, 0.0))


def test_a_cached_reference_has_micro_batches_of_other_lengths() -> None:
    """SmolLM2-135M in bf16, beta 0.5, 8 pairs, as measured: 0.7553 with a spread of 0.28 nats is rounding."""
    config = trial(micro=4, forward=4, beta=0.5)
    measured = {**validation(0.7553, 0.277), "pairs": 8}
    with pytest.raises(RuntimeError):
        baseline.check(config, measured)
    config.compute = {"cache_reference": True}
    baseline.check(config, measured)
    config.trainer.precision = "32"
    with pytest.raises(RuntimeError):
        baseline.check(config, measured)


def test_a_wrong_reference_does_not_pass_for_rounding() -> None:
    """Log-ratios that spread by 10 nats are no rounding, and do not widen the bound."""
    config = trial(micro=1, forward=4)
    assert baseline.tolerance(config, validation(0.7, 10)) == baseline.tolerance(config, validation(0.7, 0.5)) < 0.02
    with pytest.raises(RuntimeError):
        baseline.check(config, validation(0.75, 10))


@pytest.mark.parametrize(
    "scheme, gaps, te, fact",
    [
        ("lora", ("transformer_engine",), "", "Transformer Engine"),
        ("none", ("cuda", "apex", "transformer_engine"), "2.1", "Transformer Engine"),
        ("lora", (), "2.0.0", "ub_overlap_ag"),
        ("lora", (), "1.13.0", ""),
        ("none", (), "2.0.0", ""),
    ],
)
def test_sequence_parallelism_where_it_works(scheme: str, gaps: tuple[str, ...], te: str, fact: str) -> None:
    why = parallelism.unsupported_reason(True, scheme, gaps, te)
    assert fact in why and bool(why) == bool(fact)
    assert parallelism.unsupported_reason(False, scheme, gaps, te) == ""


def test_sequence_parallelism_is_refused_with_words() -> None:
    parallelism.check(trial(), ("transformer_engine",))
    with pytest.raises(Refused, match="model.sequence_parallel=true: .*set it to false"):
        parallelism.check(trial(sequence_parallel=True, tensor_model_parallel_size=2), ("transformer_engine",))
    with pytest.raises(Refused, match="tensor_model_parallel_size is 1"):
        parallelism.check(trial(sequence_parallel=True), ())
