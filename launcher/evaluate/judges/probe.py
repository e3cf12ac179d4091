"""A probe as a judge, where no reward model is at hand: logistic regression on the reference policy's hidden states.

It is a Bradley-Terry model: P(a is better than b) = sigmoid(w . (f(a) - f(b))), with f hidden states of the answer
after its prompt; which ones, of several kinds, is chosen as its penalty is. It is trained on pairs that no trial was
trained on, and is never shown without its own accuracy on pairs that it was not fitted to. Where that accuracy could be
chance, it says that the comparison is inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher import estimates
from launcher.evaluate.judges.judge import Comparison, Preferences

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Array = NDArray[numpy.float64]
else:
    Array = Any

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties tried, for differences of features scaled to a mean square of 1 and a mean loss over pairs."""
SURE = 0.01
"""The accuracy has to be above chance at this level, one-sided. Its error takes the pairs for independent, but those of
a cross-validation share what they were judged by: of 200 probes on random features, 7 pass, not 2."""
_FOLDS = 5
_STEPS = 50  # of Newton's method at most; it needs about ten


@dataclass(frozen=True)
class Probe:
    """A fitted probe."""

    weights: Array
    """[features], for unscaled features."""
    accuracy: float
    """Share of the held-out pairs whose chosen answer it prefers."""
    error: float
    """Standard error of `accuracy`, over prompts."""
    pairs: int
    penalty: float
    """The ridge penalty that was chosen."""
    kind: int = 0
    """The kind of features that was chosen."""

    @property
    def unusable(self) -> str:
        """Why it cannot judge; "" where its accuracy is above chance, at SURE."""
        if estimates.student_tail((self.accuracy - 0.5) / self.error, self.pairs - 1) < SURE:
            return ""
        return (
            f"inconclusive: the probe prefers the chosen answer in {self.accuracy:.3f} ± {self.error:.3f} of "
            f"{self.pairs} pairs held out from it, which may be chance"
        )

    @property
    def facts(self) -> dict[str, float]:
        """What is shown beside every result."""
        return {
            "held_out_accuracy": self.accuracy,
            "held_out_accuracy_error": self.error,
            "pairs": self.pairs,
            "penalty": self.penalty,
            "kind": self.kind,
        }

    def prefer(self, first: Array, second: Array) -> list[float]:
        """P(first is better) of each row. Both are as the chosen and rejected answers that it was fitted to."""
        margins = _differences(first, second)[:, self.kind] @ self.weights
        return [float(value) for value in _sigmoid(margins)]


def fit(chosen: Array, rejected: Array, prompts: Sequence[str]) -> Probe:
    """Fit a probe on pairs and measure it on pairs held out.

    `chosen` and `rejected` are [pairs, kinds, features], or [pairs, features] of one kind; `prompts` names each pair's
    prompt: pairs of one prompt are never on both sides of a split. Accuracy is by nested cross-validation of five
    folds: each pair is judged by a probe that was neither fitted to it nor had its kind and penalty chosen by it.
    Raises ValueError with fewer than 20 prompts.
    """
    import numpy

    differences = _differences(chosen, rejected)
    scale = numpy.sqrt((differences**2).mean(axis=0))  # the same whichever answer of a pair is the chosen one
    scaled = differences / numpy.where(scale > 0, scale, 1.0)
    names = list(dict.fromkeys(prompts))
    if len(names) < 20:
        raise ValueError(f"a probe needs pairs of at least 20 prompts; there are {len(names)}")
    order = numpy.random.default_rng(0).permutation(len(names))
    fold_of = {names[place]: number % _FOLDS for number, place in enumerate(order)}
    folds = numpy.array([fold_of[name] for name in prompts])
    right = numpy.zeros(len(scaled))
    for fold in range(_FOLDS):
        inside, outside = folds != fold, folds == fold
        kind, penalty = _choose(scaled[inside], folds[inside])
        right[outside] = _right(scaled[outside, kind] @ _weights(scaled[inside, kind], penalty))
    by_prompt = {name: [0.0, 0] for name in names}
    for name, value in zip(prompts, right.tolist(), strict=True):
        by_prompt[name][0] += value
        by_prompt[name][1] += 1
    measured = estimates.ratio([total for total, _ in by_prompt.values()], [size for _, size in by_prompt.values()])
    least = estimates.share_error(measured.value, len(names))
    kind, penalty = _choose(scaled, folds)
    weights = _weights(scaled[:, kind], penalty) / numpy.where(scale > 0, scale, 1.0)[kind]
    return Probe(weights, measured.value, max(measured.error or 0.0, least), len(scaled), penalty, kind)


def _differences(first: Array, second: Array) -> Array:
    """[pairs, kinds, features]"""
    import numpy

    found: Array = numpy.asarray(first, dtype=float) - numpy.asarray(second, dtype=float)
    return found if found.ndim == 3 else found[:, None]


def _choose(differences: Array, folds: Array) -> tuple[int, float]:
    """The kind and the penalty with the smallest loss on pairs left out, fold by fold."""
    import numpy

    def loss(way: tuple[int, float]) -> float:
        kind, penalty = way
        total = 0.0
        for fold in numpy.unique(folds):
            inside = folds != fold
            margins = differences[~inside, kind] @ _weights(differences[inside, kind], penalty)
            total += float(numpy.logaddexp(0.0, -margins).sum())
        return total

    return min(((kind, penalty) for kind in range(differences.shape[1]) for penalty in PENALTIES), key=loss)


def _weights(differences: Array, penalty: float) -> Array:
    """argmin over w of mean(log(1 + exp(-w . d))) + penalty / 2 |w|^2, by Newton's method with halved steps.

    With more features than pairs the solution lies in the span of the pairs, so the problem is solved there.
    """
    import numpy

    count, width = differences.shape
    if width > count:
        basis, _ = numpy.linalg.qr(differences.T)
        return numpy.asarray(basis @ _weights(differences @ basis, penalty))
    weights = numpy.zeros(width)

    def value(at: Array) -> float:
        return float(numpy.logaddexp(0.0, -differences @ at).mean() + penalty / 2 * at @ at)

    current = value(weights)
    for _ in range(_STEPS):
        chances = _sigmoid(-differences @ weights)
        gradient = penalty * weights - differences.T @ chances / count
        curvature = (differences.T * (chances * (1 - chances) / count)) @ differences
        step = numpy.linalg.solve(curvature + penalty * numpy.eye(width), gradient)
        size = 1.0
        while (new := value(weights - size * step)) > current and size > 1e-6:
            size /= 2
        if current - new < 1e-10 * max(1.0, abs(current)):
            break
        weights, current = weights - size * step, new
    return weights


def _right(margins: Array) -> Array:
    """1 where the chosen answer is preferred, 0.5 where neither is."""
    import numpy

    return numpy.where(margins > 0, 1.0, numpy.where(margins == 0, 0.5, 0.0))


def _sigmoid(values: Array) -> Array:
    import numpy

    return numpy.asarray(0.5 * (1 + numpy.tanh(values / 2)))


def judge(
    probe: Probe, features: Callable[[Sequence[tuple[str, str]]], Array], comparisons: Sequence[Comparison]
) -> Preferences:
    """A probe's verdicts. `features` computes the features of [(prompt, answer)], in the form the probe was fitted on.

    The verdict is unusable, and no features are computed, if the probe's own accuracy could be chance.
    """
    if probe.unusable:
        return Preferences([None] * len(comparisons), probe.facts, probe.unusable)
    if not comparisons:  # no held-out prompt was asked, or all answers are the reference policy's
        return Preferences([], probe.facts)
    first = features([(it.prompt, it.first) for it in comparisons])
    second = features([(it.prompt, it.second) for it in comparisons])
    return Preferences(list(probe.prefer(first, second)), probe.facts)
