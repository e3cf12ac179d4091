"""What trials are compared by. A measure is one entry of REGISTRY; tables, plots, verdicts and CSV are made from it.

NeMo-Aligner's `rewards_*` are mean log-ratios log pi(y|x) - log pi_ref(y|x) of whole responses, in nats, and are not
multiplied by beta, whatever their name says; here they are shown as what they are. The implicit reward of DPO is beta
times that (Rafailov et al. 2023, section 4), so the reward margin is beta x (log-ratio of chosen - that of rejected).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher import estimates
from launcher.estimates import Estimate
from launcher.report.recorded import Pairs, Validation


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure. A new column of the evaluation can be used by its name as soon as the evaluation writes it."""

    key: str
    """Its name in `expect`, in `export --by` and in the CSV."""
    title: str
    note: str
    """A sentence that explains it below the tables. `{per}` as in `unit`."""
    form: str
    """Python's format for its value."""
    columns: tuple[str, ...]
    """The evaluation's columns that `each_pair` and `sizes` read."""
    each_pair: Callable[[Pairs, float | None], Sequence[float]]
    """(columns, beta) -> one value per pair, whose mean is the measure; with `sizes`, one sum per pair."""
    sizes: Callable[[Pairs], Sequence[float]] | None = None
    """The number of tokens of each pair, for a mean over tokens."""
    logged: Callable[[Validation, float | None], float | None] | None = None
    """(validation, beta) -> its value, if NeMo-Aligner's validation logs it; None: the evaluation gives it."""
    bound: Callable[[float, float | None], float | None] | None = None
    """(upper bound of the error of the mean of both log-ratios, beta) -> upper bound of the measure's error."""
    unit: str = ""
    """`{per}` is replaced by what log-ratios are counted by: "response" or "token"."""
    better: Literal["higher", "lower", ""] = ""
    """"": neither is better."""
    chance: float | None = None
    """Its value for a policy that has learned nothing."""
    share: bool = False
    """Whether it is a share of the pairs; its error is then Agresti and Coull's."""
    across_betas: bool = True
    """Whether trials of different betas may be ranked by it."""
    brief: bool = False
    """Whether it is a column of the short table that is printed after a run."""
    glance: bool = False
    """Whether the page's cards show it."""
    against_beta: bool = False
    """Whether it is plotted against beta."""
    over_steps: bool = False
    """Whether it is plotted over the steps. Needs `logged`."""

    def unit_of(self, per: str) -> str:
        return self.unit.format(per=per)

    def note_of(self, per: str) -> str:
        return self.note.format(per=per)

    def label(self, per: str) -> str:
        """The title with its unit, for an axis."""
        unit = self.unit_of(per)
        return f"{self.title}, {unit}" if unit else self.title

    def terms(self, pairs: Pairs | None, beta: float | None) -> tuple[Sequence[float], Sequence[float]] | None:
        """(a value for each pair, their weights); None if the evaluation lacks such columns, or has no token."""
        if pairs is None or any(name not in pairs for name in self.columns):
            return None
        values = self.each_pair(pairs, beta)
        sizes = self.sizes(pairs) if self.sizes else [1.0] * len(values)
        return (values, sizes) if math.fsum(sizes) else None

    def estimate(
        self, validation: Validation | None, pairs: Pairs | None, beta: float | None, std: float | None
    ) -> Estimate | None:
        """Its value and standard error; None if it is not known.

        `pairs` are the evaluation's columns, or None if they do not describe what was logged. Without them only an
        upper bound of the error is known. It follows from `std`, the standard deviation of both log-ratios together
        (all that NeMo-Aligner logs), because var(chosen) + var(rejected) <= 2 std^2.
        """
        terms = self.terms(pairs, beta)
        own = estimates.ratio(*terms) if terms else None
        if self.logged is None:
            return own
        value = self.logged(validation, beta) if validation else None
        count = validation.pairs if validation else None
        if value is None or not count:
            return None if value is None else Estimate(value)
        if self.share:
            error = estimates.share_error(value, count) if 0 <= value <= 1 else None
            return Estimate(value, error, pairs=count)
        if own is not None and own.error is not None and own.pairs:
            # The spread is that of the evaluated pairs, the number of pairs that of the validation.
            return Estimate(value, own.error * math.sqrt(own.pairs / count), pairs=count, freedom=own.freedom)
        bound = self.bound(std / math.sqrt(count), beta) if self.bound and std is not None else None
        return Estimate(value, bound, at_most=bound is not None, pairs=count)


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

REGISTRY: dict[str, Measure] = {measure.key: measure for measure in _ENTRIES}
"""All measures by key, in the order of the tables' columns."""


def ranked() -> list[Measure]:
    """The measures that have a better end."""
    return [measure for measure in REGISTRY.values() if measure.better]
