"""Win rates: who is compared with whom, ties, and length taken out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from launcher import estimates
from launcher.evaluate import win_rate
from launcher.evaluate.answers import PromptAnswers
from launcher.evaluate.judges.judge import Comparison, Preferences
from launcher.evaluate.win_rate import Wins


def answers(number: int, *samples: str, greedy: str = "", chosen: str | None = None) -> PromptAnswers:
    ended = [True] * len(samples)
    return PromptAnswers(
        prompt_id=f"heldout-{number}", source="heldout", prompt=f"Question {number}", chosen=chosen, greedy=greedy,
        greedy_ended=True, samples=samples, samples_ended=ended, tokens=[[1]] * len(samples),
    )  # fmt: skip


class Rule:
    """Judges by a function of both answers."""

    name = "rule"

    def __init__(self, rule: Callable[[str, str], float | None]) -> None:
        self.rule = rule
        self.asked: list[Comparison] = []

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
        self.asked += comparisons
        return Preferences([self.rule(it.first, it.second) for it in comparisons], {"asked": len(comparisons)})


def test_sample_by_sample_against_the_reference():
    own = [answers(1, "a", "bbb"), answers(2, greedy="cc"), answers(3, "x")]
    reference = [answers(1, "aa", "b"), answers(2, greedy="c"), answers(9, "y")]
    judge = Rule(lambda first, second: float(len(first) > len(second)))
    wins = win_rate.against_reference(judge, own, reference)
    assert (wins.prompts, wins.preferences) == (["heldout-1", "heldout-2"], [[0.0, 1.0], [1.0]])
    assert wins.longer_by == [[-1, 2], [1]] and wins.rates == [0.5, 1.0]
    assert judge.asked[0] == Comparison("Question 1", "a", "aa") and wins.judged.facts == {"asked": 3}
    assert win_rate.against_reference(judge, own, reference, most=1).preferences == [[0.0], [1.0]]


def test_against_the_chosen_answers():
    judge = Rule(lambda first, second: float(first == "good"))
    own = [answers(1, "good", "bad", chosen="best"), answers(2, "good")]
    wins = win_rate.against_chosen(judge, own)
    assert (wins.prompts, wins.rates) == (["heldout-1"], [0.5])


def test_equal_answers_are_a_tie_and_are_not_asked_about():
    judge = Rule(lambda first, second: 1.0)
    wins = win_rate.against_reference(judge, [answers(1, "same", "other")], [answers(1, "same", "else")])
    assert wins.preferences == [[0.5, 1.0]] and len(judge.asked) == 1


def test_a_comparison_without_a_verdict_is_left_out():
    judge = Rule(lambda first, second: None if first == "?" else 1.0)
    own, reference = [answers(1, "?"), answers(2, "?", "a")], [answers(1, "b"), answers(2, "b", "b")]
    wins = win_rate.against_reference(judge, own, reference)
    assert (wins.prompts, wins.preferences) == (["heldout-2"], [[1.0]])


def test_an_unusable_judge_gives_no_wins():
    class Unsure:
        name = "unsure"

        def prefer(self, comparisons: Sequence[Comparison]) -> Preferences:
            return Preferences([None] * len(comparisons), unusable="cannot be told")

    wins = win_rate.against_reference(Unsure(), [answers(1, "a")], [answers(1, "b")])
    assert wins.prompts == [] and wins.judged.unusable == "cannot be told"


def simulated(seed: int, prompts: int, quality: float, bias: float, longer: float, samples: int = 1) -> Wins:
    """A judge that prefers by sigmoid(quality + bias x tanh(difference / 300)); the policy is `longer` on average."""
    draw, wins = random.Random(seed), Wins()
    for prompt in range(prompts):
        wins.prompts.append(str(prompt))
        differences = [int(draw.gauss(longer, 300)) for _ in range(samples)]
        wins.longer_by.append(differences)
        chances = [1 / (1 + math.exp(-quality - bias * math.tanh(it / 300))) for it in differences]
        wins.preferences.append([float(draw.random() < chance) for chance in chances])
    return wins


def controlled(wins: Wins) -> estimates.Estimate:
    values = win_rate.length_controlled(wins)
    assert values is not None
    return estimates.mean(values)


def test_a_win_rate_that_is_length_alone_is_controlled_to_one_half():
    wins = simulated(1, 2000, quality=0, bias=2, longer=300)
    assert estimates.mean(wins.rates).value > 0.7
    found = controlled(wins)
    assert found.error is not None and abs(found.value - 0.5) < 2.5 * found.error < 0.1


def test_quality_stays_where_length_is_taken_out():
    found = controlled(simulated(2, 2000, quality=1, bias=-1, longer=300))
    assert found.value == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)


def test_the_fit_is_that_of_a_second_computation():
    """The same likelihood minimised by scipy."""
    numpy, optimize = pytest.importorskip("numpy"), pytest.importorskip("scipy.optimize")
    wins = simulated(3, 150, quality=0.4, bias=1, longer=100, samples=2)
    lengths = numpy.array(wins.longer_by).ravel()
    x, y = numpy.tanh(lengths / lengths.std()), numpy.array(wins.preferences).ravel()
    x, y = numpy.append(x, 0.0), numpy.append(y, 0.5)

    def loss(at):
        z = at[0] + at[1] * x
        return numpy.sum(numpy.logaddexp(0, z) - y * z) + 0.05 * at[1] ** 2

    a, _ = optimize.minimize(loss, [0.0, 0.0]).x
    assert controlled(wins).value == pytest.approx(1 / (1 + math.exp(-a)), abs=1e-4)


def test_its_error_is_the_spread_of_repetitions():
    found = [controlled(simulated(seed, 200, quality=0.3, bias=1, longer=150, samples=2)) for seed in range(100)]
    spread = estimates.mean([it.value for it in found]).error * math.sqrt(100)  # type: ignore[operator]
    assert sum(it.error or 0 for it in found) / 100 == pytest.approx(spread, rel=0.2)


def test_a_policy_that_always_wins_has_a_rate():
    wins = Wins(["1", "2", "3"], [[1.0]] * 3, [[5], [50], [10]])
    assert 0.7 < controlled(wins).value < 1
    assert win_rate.length_controlled(Wins(["1"], [[1.0]], [[5]])) is None
    assert controlled(Wins(["1", "2"], [[0.5], [0.5]], [[0], [0]])).value == pytest.approx(0.5)
