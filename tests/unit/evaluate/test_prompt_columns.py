"""Columns of scores.json: values that can be computed by hand, and policies broken on purpose."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from launcher import estimates
from launcher.evaluate import answers as stored
from launcher.evaluate import prompt_columns, scores
from launcher.report import gather, judge, measures, recorded_scores
from launcher.report.measure import Measure
from tests.unit.evaluate import simulated
from tests.unit.evaluate.simulated import FAULTS, SOUND, VOCABULARY
from tests.unit.report.test_answers import content

ANSWER = stored.PromptAnswers(
    prompt_id="a", source="heldout", prompt="Q", greedy="my answer, lantern", greedy_ended=True,
    samples=["one two one two", "I can't say."], samples_ended=[False, True], tokens=[[1, 2] * 4, [3, 4, 5, 6]],
    kl_nats=[1.0, 4.0],
    instructions=[
        {"id": "punctuation:no_comma", "kwargs": {}}, {"id": "keywords:existence", "kwargs": {"keywords": ["lantern"]}},
    ],
)  # fmt: skip
PLAIN = dataclasses.replace(
    ANSWER, prompt_id="b", instructions=None, samples=[], samples_ended=[], tokens=[], kl_nats=[]
)


def test_values_of_one_prompt():
    reference = dataclasses.replace(ANSWER, tokens=[[1], [1, 2]], kl_nats=[])
    found = prompt_columns.columns([ANSWER, PLAIN], {"a": reference}, VOCABULARY)
    assert {name: values[0] for name, values in found.items()} == {
        "length": 6.0, "reference_length": 1.5, "unended": 0.5, "kl_own": 2.5, "refusals": 0.5,
        "repeated": pytest.approx((1 - 2 / 5) / 2), "self_bleu": 0.0,
        "compression": pytest.approx(28 / 46, abs=0.05),
        "distinct_input": found["distinct_input"][0], "distinct": found["distinct"][0],
        "instructions": 2, "followed": 1, "all_followed": 0.0, "followed_loosely": 1, "all_followed_loosely": 0.0,
    }  # fmt: skip
    assert all(values[1] is None for values in found.values())
    assert prompt_columns.columns([PLAIN], {}, VOCABULARY) == {}


def test_answers_are_stored_and_read_again(tmp_path):
    file = tmp_path / "answers.jsonl"
    newer = dataclasses.replace(ANSWER, greedy="newer")
    file.write_text("".join(f"{it.line()}\n" for it in (ANSWER, PLAIN, newer)) + PLAIN.line()[:40])
    assert stored.read(file) == [newer, PLAIN]
    assert stored.read(tmp_path / "none.jsonl") == []
    with pytest.raises(ValueError, match="lists of different lengths"):
        stored.parse(json.dumps(json.loads(ANSWER.line()) | {"tokens": [[1]]}))
    with pytest.raises(ValueError, match="lacks a key"):
        stored.parse('{"prompt_id": "a"}')


def estimate(measure: Measure, content) -> estimates.Estimate:
    scores = recorded_scores.scores(content)
    assert scores is not None
    found = measure.estimate(None, scores.columns(measure.columns), None, None)
    assert found is not None
    return found


def test_the_prompt_is_the_unit_of_every_error():
    """Four samples of a prompt that are all alike are worth one: the error is that of the prompts' means."""
    own = simulated.answers(SOUND, 1, prompts=30)
    same = [dataclasses.replace(it, samples=[it.samples[0]] * 4, tokens=[it.tokens[0]] * 4) for it in own]
    single = [
        dataclasses.replace(
            it, samples=it.samples[:1], samples_ended=it.samples_ended[:1], tokens=it.tokens[:1], kl_nats=it.kl_nats[:1]
        )
        for it in own
    ]
    reference = simulated.answers(SOUND, 2, prompts=30)
    for key in ("length", "length_ratio", "repeated"):
        first, second = (estimate(measures.REGISTRY[key], simulated.scores(it, reference)) for it in (same, single))
        assert first.error == pytest.approx(second.error) and first.pairs == second.pairs == 30
        assert first.counted == "prompts"


def test_the_length_ratio_is_that_of_the_sums():
    own, reference = simulated.answers(FAULTS["length"], 1), simulated.answers(SOUND, 2)
    found = estimate(measures.REGISTRY["length_ratio"], simulated.scores(own, reference))
    lengths = [sum(len(tokens) for it in which for tokens in it.tokens) for which in (own, reference)]
    assert found.value == pytest.approx(lengths[0] / lengths[1])


def test_instructions_are_counted_by_instruction_and_by_prompt():
    own = simulated.answers(SOUND, 1)
    content = simulated.scores(own, own)
    asked = [it for it in own if it.instructions]
    used = sum("lantern" in it.greedy.split() for it in asked)
    by_instruction = estimate(measures.REGISTRY["following"], content)
    by_prompt = estimate(measures.REGISTRY["following_prompt"], content)
    assert by_instruction.value == pytest.approx((used + len(asked)) / (2 * len(asked)))
    assert by_prompt.value == pytest.approx(used / len(asked)) and by_prompt.pairs == len(asked) == 24
    assert by_prompt.error == pytest.approx(estimates.share_error(by_prompt.value, 24))


EXPECTED = {
    "collapse": {
        "repeated": 1,
        "kl_own": 1,
        "distinct": -1,
        "distinct_input": -1,
        "compression": 1,
        "length_ratio": 1,
        "unended": 1,
    },
    "length": {"length_ratio": 1, "unended": 1},
    "cold": {"distinct": -1, "distinct_input": -1, "self_bleu": 1},
    "flipped": {"win": -1, "win_controlled": -1},
    "deaf": {"following": -1, "following_prompt": -1},
    "refusing": {"refusals": 1},
}  # fmt: skip


ALL = [it.key for it in measures.REGISTRY.values() if it.table == "prompts"]


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_broken_policy_is_caught(fault, tmp_path):
    """A broken and a sound policy as two trials of a sweep, compared by every measure of answers, corrected by Holm."""
    words = {key: "highest" if EXPECTED[fault].get(key, 1) > 0 else "lowest" for key in ALL}
    made = simulated.sweep(tmp_path / "sweep", {0.05: FAULTS[fault], 0.1: SOUND}, {0.05: words})
    (verdict,) = judge.judge(gather.gather(made)).verdicts
    outcomes = {key: finding.outcome for key, finding in zip(words, verdict.findings, strict=True)}
    assert {key: outcomes[key] for key in EXPECTED[fault]} == dict.fromkeys(EXPECTED[fault], "supported")
    assert all("prompt by prompt" in it.text for it in verdict.findings)


def test_a_sound_policy_is_not_caught(tmp_path):
    made = simulated.sweep(tmp_path / "sweep", {0.05: SOUND, 0.1: SOUND}, {0.05: dict.fromkeys(ALL, "highest")})
    (verdict,) = judge.judge(gather.gather(made)).verdicts
    assert len(verdict.findings) == len(ALL) >= 17
    assert {it.outcome for it in verdict.findings} == {"inconclusive"}
    assert any("prompts would decide a difference of this size" in it.sentence for it in verdict.findings)


def test_20_null_comparisons():
    """The same policy twice with other sampling seeds. All measures of answers are compared, both ways, each
    comparison corrected for their number: at most one of the 20 may find a difference."""
    false = []
    for seed in range(20):
        reference = simulated.answers(SOUND, 10_000 + seed, prompts=24, samples=3)
        first, second = (
            simulated.scores(simulated.answers(SOUND, 100 * seed + number, prompts=24, samples=3), reference)
            for number in (1, 2)
        )
        chances = {key: _chance(measures.REGISTRY[key], first, second) for key in ALL}
        adjusted = estimates.holm(list(chances.values()))
        false += [(seed, key) for key, p in zip(ALL, adjusted, strict=True) if p < estimates.LEVEL]
    assert len({seed for seed, _ in false}) <= 1, false


def _chance(measure: Measure, first, second) -> float:
    """Two-sided p-value of the difference, prompt by prompt, as launcher.report.pools computes it."""
    terms = [measure.terms(recorded_scores.scores(it).columns(measure.columns), None) for it in (first, second)]
    apart = estimates.ratio([a - b for a, b in zip(terms[0][0], terms[1][0], strict=True)], terms[0][1])
    return min(1.0, 2 * min(apart.chance(1), apart.chance(-1)))


def test_reward_and_length_is_pearsons_correlation():
    numpy = pytest.importorskip("numpy")
    draw = numpy.random.default_rng(1)
    lengths = draw.integers(5, 60, size=(2, 40))
    ratios = 0.05 * lengths + draw.normal(size=(2, 40))
    pairs = {
        "log_ratio_chosen": list(ratios[0]), "log_ratio_rejected": list(ratios[1]),
        "tokens_chosen": list(lengths[0]), "tokens_rejected": list(lengths[1]),
    }  # fmt: skip
    found = measures.REGISTRY["reward_length"].estimate(None, pairs, 0.1, None)
    assert found.value == pytest.approx(numpy.corrcoef(ratios.ravel(), lengths.ravel())[0, 1])
    means = []
    for _ in range(400):  # its error is the bootstrap's, over pairs
        rows = draw.integers(40, size=40)
        means.append(numpy.corrcoef(ratios[:, rows].ravel(), lengths[:, rows].ravel())[0, 1])
    assert found.error == pytest.approx(numpy.std(means), rel=0.2)
    flat = {**pairs, "tokens_chosen": [9] * 40, "tokens_rejected": [9] * 40}
    assert measures.REGISTRY["reward_length"].estimate(None, flat, 0.1, None).value == 0


def test_values_are_finite_for_empty_answers():
    empty = dataclasses.replace(ANSWER, greedy="", samples=["", ""], tokens=[[], []], samples_ended=[True, True])
    content = simulated.scores([empty, dataclasses.replace(empty, prompt_id="b")], [empty])
    values = [it for column in content["per_prompt"].values() for it in column if it is not None]
    assert values and all(math.isfinite(it) for it in values)


def test_many_policies_are_shown_in_tables_that_fit():
    names = [f"trial {number} (beta 0.05), step 12" for number in range(9)]
    shown = scores.table({name: content(0.01 * number) for number, name in enumerate(names)})
    blocks = shown.split("\n\n")
    assert [[name in block for name in names].count(True) for block in blocks] == [4, 4, 1]
    assert max(map(len, shown.splitlines())) < 160
    assert all("repeated 4-grams" in block for block in blocks)
