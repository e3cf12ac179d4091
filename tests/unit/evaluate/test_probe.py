"""The probe: right where there is something to learn, silent where there is not."""

from __future__ import annotations

import pytest

from launcher.evaluate.judges import probe
from launcher.evaluate.judges.judge import Comparison

numpy = pytest.importorskip("numpy")


def pairs(seed: int, count: int, width: int, strength: float):
    """Hidden states of random answers; which is chosen follows Bradley and Terry along one direction."""
    draw = numpy.random.default_rng(seed)
    direction = draw.normal(size=width)
    direction *= strength / numpy.linalg.norm(direction)
    one, other = (draw.normal(size=(count, width)) for _ in range(2))
    first = draw.random(count) < 1 / (1 + numpy.exp(-(one - other) @ direction))
    chosen, rejected = (numpy.where(first[:, None] == flag, one, other) for flag in (True, False))
    return chosen, rejected, [f"prompt {number // 2}" for number in range(count)]


def test_it_learns_and_reports_its_accuracy_on_pairs_it_has_not_seen():
    chosen, rejected, prompts = pairs(1, 600, 24, strength=3)
    fitted = probe.fit(chosen, rejected, prompts)
    new_chosen, new_rejected, _ = pairs(1, 600, 24, strength=3)
    assert fitted.unusable == "" and fitted.pairs == 600
    other = numpy.random.default_rng(7).normal(size=(2000, 24))
    assert 0.75 < fitted.accuracy < 1 and 0.005 < fitted.error < 0.05
    assert numpy.mean(fitted.prefer(new_chosen, new_rejected)) > 0.6
    forward, backward = fitted.prefer(other[:1000], other[1000:]), fitted.prefer(other[1000:], other[:1000])
    assert numpy.allclose(numpy.add(forward, backward), 1)


def test_its_accuracy_is_that_on_new_pairs():
    """Of pairs drawn by the same rule, which the fit has not seen at all."""
    chosen, rejected, prompts = pairs(2, 1600, 10, strength=2)
    fitted = probe.fit(chosen[:600], rejected[:600], prompts[:600])
    new = numpy.mean(numpy.array(fitted.prefer(chosen[600:], rejected[600:])) > 0.5)
    assert abs(fitted.accuracy - new) < 3 * fitted.error


def test_weights_are_those_of_a_second_computation():
    linear = pytest.importorskip("sklearn.linear_model")
    chosen, rejected, prompts = pairs(3, 200, 8, strength=2)
    fitted = probe.fit(chosen, rejected, prompts)
    differences = chosen - rejected
    scale = numpy.sqrt((differences**2).mean(axis=0))
    scaled = differences / scale
    model = linear.LogisticRegression(C=1 / (200 * fitted.penalty), fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(numpy.vstack([scaled, -scaled]), [1] * 200 + [0] * 200, sample_weight=[0.5] * 400)
    assert fitted.weights * scale == pytest.approx(model.coef_[0], abs=1e-4)


def test_more_features_than_pairs():
    chosen, rejected, prompts = pairs(4, 120, 300, strength=4)
    fitted = probe.fit(chosen, rejected, prompts)
    assert fitted.weights.shape == (300,) and numpy.isfinite(fitted.weights).all()


def test_shuffled_labels_cannot_be_told():
    """Of 20 probes on pairs whose labels are drawn at random, at most one claims to know something."""
    usable = 0
    for seed in range(20):
        chosen, rejected, prompts = pairs(100 + seed, 150, 12, strength=3)
        swap = numpy.random.default_rng(seed).random(150) < 0.5
        one, other = (numpy.where(swap[:, None] == flag, chosen, rejected) for flag in (True, False))
        fitted = probe.fit(one, other, prompts)
        usable += not fitted.unusable
        assert "inconclusive" in fitted.unusable or fitted.accuracy > 0.5
    assert usable <= 1


def test_of_several_kinds_of_features_the_telling_one_is_chosen_and_chance_is_still_chance():
    chosen, rejected, prompts = pairs(8, 300, 12, strength=3)
    noise = numpy.random.default_rng(9).normal(size=(2, 300, 4, 12))
    mixed = [
        numpy.concatenate([it[:, :3], side[:, None]], 1) for it, side in zip(noise, (chosen, rejected), strict=True)
    ]
    fitted = probe.fit(*mixed, prompts)
    assert fitted.kind == 3 and fitted.accuracy == pytest.approx(
        probe.fit(chosen, rejected, prompts).accuracy, abs=0.03
    )
    assert fitted.prefer(*mixed) == pytest.approx(probe.fit(chosen, rejected, prompts).prefer(chosen, rejected))
    usable = sum(
        not probe.fit(*numpy.random.default_rng(seed).normal(size=(2, 80, 4, 12)), prompts[:80]).unusable
        for seed in range(20)
    )
    assert usable <= 2, "of 20 probes that know nothing, one in twenty claims to"


def test_constant_features_cannot_be_told():
    same = numpy.ones((60, 4))
    fitted = probe.fit(same, same, [str(number) for number in range(60)])
    assert fitted.accuracy == 0.5 and "inconclusive" in fitted.unusable


def test_too_few_prompts_are_an_error():
    chosen, rejected, _ = pairs(5, 40, 4, strength=1)
    with pytest.raises(ValueError, match="at least 20 prompts; there are 2"):
        probe.fit(chosen, rejected, ["a", "b"] * 20)


def test_the_judge_shows_the_probes_accuracy_and_is_silent_without_it():
    chosen, rejected, prompts = pairs(6, 300, 6, strength=3)
    known = {f"answer {number}": row for number, row in enumerate(chosen)}
    asked: list[tuple[str, str]] = []

    def features(texts):
        asked.extend(texts)
        return numpy.stack([known[answer] for _, answer in texts])

    comparison = [Comparison("Q", "answer 0", "answer 1"), Comparison("Q", "answer 1", "answer 0")]
    judged = probe.judge(probe.fit(chosen, rejected, prompts), features, comparison)
    assert judged.values[0] + judged.values[1] == pytest.approx(1)
    assert judged.facts["held_out_accuracy"] > 0.7 and judged.unusable == ""
    assert probe.judge(probe.fit(chosen, rejected, prompts), features, []).values == []
    asked.clear()
    nothing = probe.fit(numpy.zeros((60, 6)), numpy.zeros((60, 6)), [str(number) for number in range(60)])
    judged = probe.judge(nothing, features, comparison)
    assert judged.values == [None, None] and "inconclusive" in judged.unusable and not asked
