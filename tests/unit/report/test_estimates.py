"""Estimates and their errors, against values computed by hand and against scipy, which the launcher does not use."""

from __future__ import annotations

import math
import random

import pytest

from launcher import estimates
from launcher.estimates import Estimate


def test_mean_and_its_standard_error():
    found = estimates.mean([1.0, 2.0, 3.0, 6.0])  # deviations -2 -1 0 3, squares 14, / 3, sqrt, / sqrt 4
    assert (found.value, found.pairs, found.freedom) == (3.0, 4, 3)
    assert found.error == pytest.approx(1.0801234)
    assert estimates.mean([5.0]).error is None


def test_ratio_weighs_tokens_and_takes_the_pair_as_the_unit():
    found = estimates.ratio([3, 3, 2, 2], [20, 30, 20, 30])  # 10 over 100; residuals 1 0 0 -1; sqrt(4 * 2 / 3) / 100
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.0163299, abs=1e-7)


def test_the_ratio_has_the_error_that_resampling_the_pairs_gives():
    draw = random.Random(5)
    sizes = [draw.randint(5, 60) for _ in range(200)]
    sums = [size * draw.gauss(0.2, 0.05) + draw.gauss(0, 1) for size in sizes]
    found = estimates.ratio(sums, sizes)
    again = []
    for _ in range(2000):
        places = draw.choices(range(200), k=200)
        again.append(sum(sums[it] for it in places) / sum(sizes[it] for it in places))
    middle = sum(again) / len(again)
    resampled = math.sqrt(sum((value - middle) ** 2 for value in again) / (len(again) - 1))
    assert found.error == pytest.approx(resampled, rel=0.06)


def test_all_right_on_a_few_pairs_is_not_certain():
    assert estimates.share_error(1.0, 32) == pytest.approx(0.0382, abs=1e-4)  # (32 + 2) / (32 + 4) = 0.9444


def test_shares_that_agree_on_every_pair_still_have_an_error():
    assert estimates.matched_error(0, 0, 4) == pytest.approx(1 / 6)  # sqrt(0.5 + 0.5) / (4 + 2)


@pytest.mark.parametrize("freedom", [1, 1.7, 2, 3, 7.5, 31, 1000, math.inf])
def test_students_distribution_is_scipys(freedom):
    stats = pytest.importorskip("scipy.stats")
    for t in (-6, -1, 0, 0.3, 1, 2.5, 10, 40):
        other = stats.norm.sf(t) if math.isinf(freedom) else stats.t.sf(t, freedom)
        assert estimates.student_tail(t, freedom) == pytest.approx(other, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 7, math.inf])
def test_quantiles_are_scipys(freedom):
    stats = pytest.importorskip("scipy.stats")
    for chance in (0.025, 0.005, 0.3):
        other = stats.norm.isf(chance) if math.isinf(freedom) else stats.t.isf(chance, freedom)
        assert estimates.quantile(chance, freedom) == pytest.approx(other, rel=1e-7)


def test_as_many_seeds_as_needed_tell_in_four_of_five_experiments():
    draw = random.Random(8)
    hint = Estimate(1.0, 0.5, pairs=40, seeds=3, seed_error=0.49)
    seeds = int(hint.needed().split()[1])
    told = 0
    for _ in range(2000):
        each = [draw.gauss(1.0, 0.49 * math.sqrt(3)) for _ in range(seeds)]
        over_pairs = Estimate(1.0, math.sqrt(0.5**2 - 0.49**2), pairs=40, freedom=39)
        told += estimates.over_seeds(each, over_pairs).chance(1) < estimates.LEVEL / 2
    assert 0.72 < told / 2000 < 0.9


def test_chance_of_a_difference():
    stats = pytest.importorskip("scipy.stats")
    values = [0.4, -0.1, 0.3, 0.2, 0.5, 0.1]
    found = estimates.mean(values)
    assert found.chance(1) == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)
    assert found.chance(-1) == pytest.approx(1 - found.chance(1))
    assert Estimate(1.0).chance(1) == 1.0  # of unknown error
    assert Estimate(1.0, 0.0).chance(1) == 0.0


def test_holm_is_statsmodels_rule_written_out():
    """Step down: the smallest p times n, the next times n - 1, never falling."""
    assert estimates.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert estimates.holm([0.6, 0.7]) == [1.0, 1.0]
    assert estimates.holm([]) == []


def test_null_families_hold_a_false_finding_in_one_of_twenty():
    draw = random.Random(7)
    wrong = 0
    for _ in range(1000):
        means = [estimates.mean([draw.gauss(0, 1) for _ in range(20)]) for _ in range(5)]
        chances = [2 * min(it.chance(1), it.chance(-1)) for it in means]
        wrong += min(estimates.holm(chances)) < estimates.LEVEL
    assert 30 <= wrong <= 70  # 50 expected, standard deviation 7


def test_seeds_add_their_spread_to_the_error():
    over_pairs = Estimate(2.0, 0.3, pairs=40, freedom=39)
    found = estimates.over_seeds([1.0, 2.0, 3.0], over_pairs)  # sd 1, / sqrt 3
    assert (found.value, found.seeds, found.pairs) == (2.0, 3, 40)
    assert found.seed_error == pytest.approx(1 / math.sqrt(3))
    assert found.error == pytest.approx(math.sqrt(1 / 3 + 0.09))
    stats = pytest.importorskip("scipy.stats")
    t, share = 2 / math.sqrt(1 / 3 + 0.09), (1 / 3) / (1 / 3 + 0.09)
    assert found.chance(1) == pytest.approx(share * stats.t.sf(t, 2) + (1 - share) * stats.t.sf(t, 39))
    assert estimates.over_seeds([1.0], over_pairs) is over_pairs


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_false_differences_over_seeds_are_as_rare_as_promised(spread):
    """Three seeds, 40 pairs, no true difference; the spread between seeds against the error over pairs."""
    draw = random.Random(12)
    wrong = 0
    for _ in range(4000):
        squares = sum(draw.gauss(0, 1) ** 2 for _ in range(39)) / 39
        over_pairs = Estimate(0.0, math.sqrt(squares), pairs=40, freedom=39)
        common = draw.gauss(0, 1)
        found = estimates.over_seeds([common + draw.gauss(0, spread * math.sqrt(3)) for _ in range(3)], over_pairs)
        wrong += min(found.chance(1), found.chance(-1)) < 0.025
    assert wrong / 4000 < 0.06


def test_the_error_over_seeds_is_the_one_that_repeated_experiments_show():
    """Two-way random effects, simulated: new seeds and new pairs each time."""
    draw = random.Random(11)
    means, errors = [], []
    for _ in range(1500):
        pairs = [draw.gauss(0, 1) for _ in range(30)]
        each = [[seed + pair + draw.gauss(0, 0.3) for pair in pairs] for seed in (draw.gauss(0, 0.4) for _ in range(4))]
        averaged = estimates.mean([sum(column) / 4 for column in zip(*each, strict=True)])
        found = estimates.over_seeds([sum(values) / 30 for values in each], averaged)
        means.append(found.value)
        errors.append(found.error**2)
    true = sum(value**2 for value in means) / len(means)
    assert sum(errors) / len(errors) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.5, 0.5, pairs=40), "about 320 pairs"),  # 40 x 2.8^2 = 313.6
        (Estimate(-0.5, 0.5, pairs=40), "about 320 pairs"),
        # 0.01 + 3 x 0.24 / 9 = 0.09 <= (1 / (2.31 + 0.84))^2 = 0.10; with 8 seeds 0.100 > 0.097
        (Estimate(1.0, 0.5, pairs=40, seeds=3, seed_error=0.49), "about 9 seeds per beta"),
        (Estimate(0.0, 0.5, pairs=40), ""),
        (Estimate(0.5, 0.5, at_most=True, pairs=40), ""),
        (Estimate(0.5, None, pairs=40), ""),
    ],
)
def test_what_would_tell(estimate, words):
    needed = estimate.needed()
    assert needed == words


def test_as_many_pairs_as_needed_tell_in_four_of_five_experiments():
    draw = random.Random(3)
    told = 0
    for _ in range(1000):
        found = estimates.mean([draw.gauss(0.5, 0.5 * math.sqrt(40)) for _ in range(320)])
        told += found.chance(1) < estimates.LEVEL / 2
    assert 0.75 < told / 1000 < 0.86


@pytest.mark.parametrize(
    ("value", "error", "form", "expected"),
    [
        (0.625, 0.0861, ".3f", "0.625 ± 0.086"),
        (-0.000655, 0.0000612, "+.0f", "-0.000655 ± 0.000061"),
        (2.25, 0.595, "+.0f", "+2.25 ± 0.59"),
        (123.4, 12.3, ".3f", "123.400 ± 12"),
        (0.5, None, ".3f", "0.500"),
        (1.0, 0.0, ".3f", "1.000 ± 0.00"),
    ],
)
def test_value_and_error_in_words(value, error, form, expected):
    assert estimates.shown(value, error, form) == expected
