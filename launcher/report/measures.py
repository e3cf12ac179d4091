"""What trials are compared by. A measure is one entry of REGISTRY; tables, plots, verdicts and CSV are made from it.

NeMo-Aligner's `rewards_*` are mean log-ratios log pi(y|x) - log pi_ref(y|x) of whole responses, in nats, and are not
multiplied by beta, whatever their name says; here they are shown as what they are. The implicit reward of DPO is beta
times that (Rafailov et al. 2023, section 4), so the reward margin is beta x (log-ratio of chosen - that of rejected).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from launcher.report import answer_measures
from launcher.report.measure import Measure
from launcher.report.recorded import Pairs, Validation


def _loss(pairs: Pairs, beta: float | None) -> list[float]:
    """-log sigmoid(beta x difference of the log-ratios), computed without overflow."""
    return [max(-margin, 0.0) + math.log1p(math.exp(-abs(margin))) for margin in _margin(pairs, beta)]


def _margin(pairs: Pairs, beta: float | None) -> list[float]:
    both = zip(pairs["log_ratio_chosen"], pairs["log_ratio_rejected"], strict=True)
    return [(beta or 0.0) * (chosen - rejected) for chosen, rejected in both]


def _accuracy(pairs: Pairs, beta: float | None) -> list[float]:
    both = zip(pairs["log_ratio_chosen"], pairs["log_ratio_rejected"], strict=True)
    return [float(chosen > rejected) for chosen, rejected in both]


def _drift(pairs: Pairs, beta: float | None) -> list[float]:
    """Drift is the mean of the sizes of the two mean log-ratios, so each log-ratio counts with the sign of its mean."""
    chosen, rejected = pairs["log_ratio_chosen"], pairs["log_ratio_rejected"]
    signs = [math.copysign(1.0, math.fsum(values)) for values in (chosen, rejected)]
    return [(signs[0] * first + signs[1] * second) / 2 for first, second in zip(chosen, rejected, strict=True)]


def _both(name: str) -> Callable[[Pairs], list[float]]:
    def summed(pairs: Pairs) -> list[float]:
        return [a + b for a, b in zip(pairs[f"{name}_chosen"], pairs[f"{name}_rejected"], strict=True)]

    return summed


def _logged_margin(validation: Validation, beta: float | None) -> float | None:
    chosen, rejected = validation.get("rewards_chosen_mean"), validation.get("rewards_rejected_mean")
    return None if chosen is None or rejected is None or beta is None else beta * (chosen - rejected)


def _logged_drift(validation: Validation, beta: float | None) -> float | None:
    chosen, rejected = validation.get("rewards_chosen_mean"), validation.get("rewards_rejected_mean")
    return None if chosen is None or rejected is None else (abs(chosen) + abs(rejected)) / 2


_LOG_RATIOS = ("log_ratio_chosen", "log_ratio_rejected")
_ENTRIES = (
    Measure(
        key="loss", title="loss", form=".4f", better="lower", across_betas=False, brief=True, over_steps=True,
        note="Loss: the preference loss; it depends on beta itself, so compare its course over the steps, not its "
             "level between betas.",
        columns=_LOG_RATIOS, each_pair=_loss, logged=lambda it, beta: it.get("loss"),
    ),
    Measure(
        key="accuracy", title="accuracy", form=".3f", better="higher", chance=0.5, share=True,
        brief=True, glance=True, against_beta=True, over_steps=True,
        note="Accuracy: share of the held-out pairs whose chosen response has the higher log-ratio.",
        columns=_LOG_RATIOS, each_pair=_accuracy, logged=lambda it, beta: it.get("acc"),
    ),
    Measure(
        key="margin", title="reward margin", form="+.4f", better="higher", chance=0.0,
        brief=True, glance=True, over_steps=True,
        note="Reward margin: beta x (log-ratio of chosen - log-ratio of rejected).",
        columns=_LOG_RATIOS, each_pair=_margin, logged=_logged_margin,
        bound=lambda error, beta: None if beta is None else 2 * beta * error,
    ),
    Measure(
        key="chosen", title="log-ratio chosen", form="+.3f", unit="nats per {per}", brief=True,
        note="Log-ratio: mean log-probability ratio of a held-out response to the reference policy, nats per {per}, "
             "not multiplied by beta (NeMo-Aligner's rewards_*).",
        columns=_LOG_RATIOS, each_pair=lambda pairs, beta: pairs["log_ratio_chosen"],
        logged=lambda it, beta: it.get("rewards_chosen_mean"), bound=lambda error, beta: math.sqrt(2) * error,
    ),
    Measure(
        key="rejected", title="log-ratio rejected", form="+.3f", unit="nats per {per}", brief=True, note="",
        columns=_LOG_RATIOS, each_pair=lambda pairs, beta: pairs["log_ratio_rejected"],
        logged=lambda it, beta: it.get("rewards_rejected_mean"), bound=lambda error, beta: math.sqrt(2) * error,
    ),
    Measure(
        key="drift", title="drift", form=".3f", unit="nats per {per}", better="lower",
        glance=True, against_beta=True, over_steps=True,
        note="Drift: mean size of the two log-ratios.",
        columns=_LOG_RATIOS, each_pair=_drift, logged=_logged_drift, bound=lambda error, beta: error,
    ),
    Measure(
        key="kl", title="KL", form=".4f", unit="nats per token", better="lower", glance=True, against_beta=True,
        note="KL: KL(policy || reference) on the held-out responses, exact, over the whole vocabulary.",
        columns=("kl_chosen", "kl_rejected", "tokens_chosen", "tokens_rejected"),
        each_pair=lambda pairs, beta: _both("kl")(pairs), sizes=_both("tokens"),
    ),
)  # fmt: skip

REGISTRY: dict[str, Measure] = {measure.key: measure for measure in (*_ENTRIES, *answer_measures.ENTRIES)}
"""All measures by key, in the order of the tables' columns."""


def ranked() -> list[Measure]:
    """The measures that have a better end."""
    return [measure for measure in REGISTRY.values() if measure.better]
