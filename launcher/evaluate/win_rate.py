"""Win rates: how often a judge prefers the policy's answers to others, also with the effect of length taken out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.judges.judge import Comparison, Judge, Preferences

_STEPS = 100  # of Newton's method at most; it needs fewer than ten


@dataclass
class Wins:
    """The policy's wins against one opponent, prompt by prompt."""

    prompts: list[str] = field(default_factory=list)
    """Ids of the prompts with at least one verdict."""
    preferences: list[list[float]] = field(default_factory=list)
    """Of each prompt: the verdicts on its answers; 1: the policy's is better."""
    longer_by: list[list[int]] = field(default_factory=list)
    """Of each prompt and verdict: characters of the policy's answer less those of the opponent's."""
    judged: Preferences = field(default_factory=lambda: Preferences([]))

    @property
    def rates(self) -> list[float]:
        """The win rate on each prompt."""
        return [math.fsum(values) / len(values) for values in self.preferences]


def against_reference(
    judge: Judge, answers: Sequence[PromptAnswers], reference: Sequence[PromptAnswers], most: int | None = None
) -> Wins:
    """The policy's samples against the reference policy's, the first with the first and so on; at most `most` a prompt.

    Prompts that both have answered are compared; of a prompt without samples, the greedy answers.
    """
    others = {it.prompt_id: _spoken(it, most) for it in reference}
    pairs = [
        (answer, own, other)
        for answer in answers
        for own, other in zip(_spoken(answer, most), others.get(answer.prompt_id, ()), strict=False)
    ]
    return _judge(judge, pairs)


def against_chosen(judge: Judge, answers: Sequence[PromptAnswers], most: int | None = None) -> Wins:
    """The policy's samples against the data's own good answers."""
    pairs = [(it, own, it.chosen) for it in answers if it.chosen is not None for own in _spoken(it, most)]
    return _judge(judge, pairs)


def _spoken(answer: PromptAnswers, most: int | None) -> Sequence[str]:
    return list(answer.samples)[:most] or [answer.greedy]


def _judge(judge: Judge, pairs: Sequence[tuple[PromptAnswers, str, str]]) -> Wins:
    """Equal answers are a tie, whatever the judge would say."""
    different = [(answer, own, other) for answer, own, other in pairs if own != other]
    judged = judge.prefer([Comparison(answer.prompt, own, other, answer.messages) for answer, own, other in different])
    if judged.unusable:
        return Wins(judged=judged)
    verdicts = iter(judged.values)
    wins, place = Wins(judged=judged), {}
    for answer, own, other in pairs:
        verdict = 0.5 if own == other else next(verdicts)
        if verdict is None:
            continue
        if answer.prompt_id not in place:
            place[answer.prompt_id] = len(wins.prompts)
            wins.prompts.append(answer.prompt_id)
            wins.preferences.append([])
            wins.longer_by.append([])
        wins.preferences[place[answer.prompt_id]].append(verdict)
        wins.longer_by[place[answer.prompt_id]].append(len(own) - len(other))
    return wins


def length_controlled(wins: Wins) -> list[float] | None:
    """The win rate that the judge would give to answers of equal length, as a value a prompt whose mean is the rate.

    The idea is that of AlpacaEval 2 (Dubois et al. 2404.04475): fit P(win) = sigmoid(a + b tanh(d / s)), with d the
    difference of the lengths and s its standard deviation, and read it at d = 0: sigmoid(a). Their term for the
    difficulty of an instruction needs many models, and is left out. One tie at d = 0 is added, so that a policy that
    always wins has a finite a; b is held back by a ridge of one tenth of a comparison.

    A prompt's value is the rate plus the prompt's influence on it (the sandwich estimator's terms), so that the spread
    over prompts gives the error. None where there are fewer than two prompts.
    """
    if len(wins.prompts) < 2:
        return None
    differences = [value for row in wins.longer_by for value in row]
    middle = math.fsum(differences) / len(differences)
    scale = math.sqrt(math.fsum((it - middle) ** 2 for it in differences) / len(differences)) or 1.0
    rows = [
        [(preference, math.tanh(longer / scale)) for preference, longer in zip(*row, strict=True)]
        for row in zip(wins.preferences, wins.longer_by, strict=True)
    ]
    a, b, inverse = _fit([it for row in rows for it in row])
    scores = [
        (
            math.fsum(y - _sigmoid(a + b * x) for y, x in row),
            math.fsum((y - _sigmoid(a + b * x)) * x for y, x in row),
        )
        for row in rows
    ]
    shares = [inverse[0] * first + inverse[1] * second for first, second in scores]
    rate, count = _sigmoid(a), len(rows)
    average = math.fsum(shares) / count
    return [rate + rate * (1 - rate) * count * (share - average) for share in shares]


def _fit(rows: Sequence[tuple[float, float]]) -> tuple[float, float, tuple[float, float]]:
    """(a, b, the first row of the inverse of the information matrix), by Newton's method with halved steps."""
    rows = [*rows, (0.5, 0.0)]
    ridge = 0.1

    def loss(a: float, b: float) -> float:
        return math.fsum(_softplus(a + b * x) - y * (a + b * x) for y, x in rows) + ridge / 2 * b * b

    a = b = 0.0
    for _ in range(_STEPS):
        chances = [_sigmoid(a + b * x) for _, x in rows]
        gradient_a = math.fsum(p - y for p, (y, _) in zip(chances, rows, strict=True))
        gradient_b = math.fsum((p - y) * x for p, (y, x) in zip(chances, rows, strict=True)) + ridge * b
        h_aa = math.fsum(p * (1 - p) for p in chances)
        h_ab = math.fsum(p * (1 - p) * x for p, (_, x) in zip(chances, rows, strict=True))
        h_bb = math.fsum(p * (1 - p) * x * x for p, (_, x) in zip(chances, rows, strict=True)) + ridge
        determinant = h_aa * h_bb - h_ab * h_ab
        step_a = (h_bb * gradient_a - h_ab * gradient_b) / determinant
        step_b = (h_aa * gradient_b - h_ab * gradient_a) / determinant
        size, current = 1.0, loss(a, b)
        while loss(a - size * step_a, b - size * step_b) > current and size > 1e-9:
            size /= 2
        a, b = a - size * step_a, b - size * step_b
        if max(abs(size * step_a), abs(size * step_b)) < 1e-10:
            break
    return a, b, (h_bb / determinant, -h_ab / determinant)


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
