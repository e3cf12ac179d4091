"""The check before the first step: an untrained adapter changes nothing, so DPO's loss must be ln 2."""

from __future__ import annotations

import math
from collections.abc import Mapping

from omegaconf import DictConfig

#: How far from ln 2 the loss may be if policy and reference are computed in the same way.
TOLERANCE = 1e-3
#: Nats: the largest standard deviation of a log-ratio that can be explained by rounding. A response of 200 tokens whose
#: log-probabilities are rounded to bf16's 8 bits, at about 0.02 nats each, differs by 0.02 x sqrt(200) = 0.3.
MOST_ROUNDING = 0.5
_SIGMAS = 4.0


def check(config: DictConfig, metrics: Mapping[str, float]) -> None:
    """Raise RuntimeError if a validation before the first step shows that policy and reference do not agree.

    `metrics` are NeMo-Aligner's own: preference_loss, and rewards_all_std, the log-ratios' standard deviation in nats.
    """
    loss, bound = float(metrics["preference_loss"]), tolerance(config, metrics)
    if not abs(loss - math.log(2)) <= bound:
        raise RuntimeError(
            f"the preference loss before the first step is {loss:.6f}, not ln 2 = {math.log(2):.6f} +- {bound:.4f}: "
            "the policy with an untrained adapter and the reference policy do not agree"
        )


def tolerance(config: DictConfig, metrics: Mapping[str, float]) -> float:
    """How far from ln 2 the loss may be.

    In bf16 a pair is rounded differently in micro batches of different shapes. NeMo-Aligner allows different sizes for
    reference and policy (model.dpo.log_prob_forward_micro_batch_size), and a cached reference was computed together
    with other pairs, in micro batches of other lengths. Measured with SmolLM2-135M on a CPU with AMX, two
    threads: the log-ratios of an untrained adapter have a standard deviation of 0.28 nats.

    With noise of standard deviation s in each log-ratio, the difference d of a pair's two log-ratios has a variance of
    2 s^2, and over n pairs
    |loss - ln 2| = |-beta mean(d) / 2 + beta^2 mean(d^2) / 8| <= beta 4 sqrt(2) s / (2 sqrt(n)) + beta^2 s^2 / 4,
    assuming that the mean is within four standard errors.
    """
    model = config.model
    same_sizes = model.dpo.log_prob_forward_micro_batch_size == model.micro_batch_size
    cached = bool((config.get("compute") or {}).get("cache_reference"))
    if (same_sizes and not cached) or str(config.trainer.precision) == "32":
        return TOLERANCE
    beta, pairs = float(model.dpo.ref_policy_kl_penalty), float(metrics.get("pairs", model.global_batch_size))
    spread = min(float(metrics["rewards_all_std"]), MOST_ROUNDING)
    return TOLERANCE + beta * _SIGMAS * math.sqrt(2) * spread / (2 * math.sqrt(pairs)) + (beta * spread) ** 2 / 4
