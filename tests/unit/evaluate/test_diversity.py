"""Each measure of diversity against a second computation, or a value that can be computed by hand."""

from __future__ import annotations

import gzip
import math
import random
from itertools import product

import pytest

from launcher import estimates
from launcher.evaluate import diversity

VOCABULARY = 1000


def texts(seed: int, count: int, length: int = 30, words: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[int(words * draw.random() ** 2) for _ in range(length + draw.randrange(9))] for _ in range(count)]


def test_distinct_ngrams_by_the_formula():
    """N / (V (1 - ((V - 1) / V)^C)), n-grams listed one by one."""
    some = texts(1, 4)
    each = []
    for n in range(1, 6):
        grams = [tuple(text[place : place + n]) for text in some for place in range(len(text) - n + 1)]
        each.append(len(set(grams)) / (VOCABULARY * (1 - ((VOCABULARY - 1) / VOCABULARY) ** len(grams))))
    assert diversity.distinct_ngrams(some, VOCABULARY) == pytest.approx(sum(each) / 5)


def test_uniform_draws_have_as_many_distinct_words_as_expected():
    """Where tokens are drawn at random from the vocabulary, the measure of n = 1 is 1, whatever the length."""
    draw = random.Random(3)
    for length in (50, 500, 5000):
        ratios = []
        for _ in range(20):
            text = [draw.randrange(VOCABULARY) for _ in range(length)]
            ratios.append(diversity.adjusted_distinct(len(set(text)), length, VOCABULARY))
        assert sum(ratios) / 20 == pytest.approx(1, abs=0.02)


def test_length_alone_does_not_lower_it():
    """Plain distinct-1 falls from 0.95 to 0.37 with the length; this stays (Liu et al. 2022, figure 1)."""
    draw = random.Random(4)
    long = [draw.randrange(VOCABULARY) for _ in range(2500)]
    short = long[:100]
    plain = [len(set(text)) / len(text) for text in (short, long)]
    assert plain[0] - plain[1] > 0.5
    adjusted = [diversity.adjusted_distinct(len(set(text)), len(text), VOCABULARY) for text in (short, long)]
    assert adjusted[0] == pytest.approx(adjusted[1], abs=0.05)


def test_texts_too_short_for_any_ngram():
    assert diversity.distinct_ngrams([[], []], VOCABULARY) == 0
    assert diversity.distinct_ngrams([[7], [7]], VOCABULARY) == pytest.approx(1 / 1.999)


def test_distinct_across_prompts_is_the_mean_over_places():
    answers = [texts(prompt, 3) for prompt in range(12)]
    own = diversity.distinct_across(answers, VOCABULARY)
    expected = [diversity.distinct_ngrams([row[place] for row in answers], VOCABULARY) for place in range(3)]
    assert len(own) == 12
    assert estimates.mean(own).value == pytest.approx(sum(expected) / 3)


def test_its_error_is_the_jackknifes():
    """Computed anew with each prompt left out: sqrt((P - 1) / P x the sum of squares)."""
    answers = [texts(prompt, 1) for prompt in range(15)]
    without = [
        diversity.distinct_ngrams([row[0] for number, row in enumerate(answers) if number != left], VOCABULARY)
        for left in range(15)
    ]
    middle = sum(without) / 15
    error = math.sqrt(14 / 15 * sum((it - middle) ** 2 for it in without))
    assert estimates.mean(diversity.distinct_across(answers, VOCABULARY)).error == pytest.approx(error)


def test_one_prompt_has_no_across():
    (own,) = diversity.distinct_across([[[1, 2, 3]]], VOCABULARY)
    assert own == diversity.distinct_ngrams([[1, 2, 3]], VOCABULARY)
    assert diversity.distinct_across([[[1, 2]], []], VOCABULARY) == []


def test_self_bleu_is_nltks():
    """Texygen's definition: sentence BLEU-4 with smoothing 1, each text against the others."""
    scores = pytest.importorskip("nltk.translate.bleu_score")
    smooth = scores.SmoothingFunction(epsilon=0.1).method1
    draw = random.Random(6)
    for words, length in product((3, 12, 60), (1, 3, 9, 25)):
        some = [" ".join(f"w{draw.randrange(words)}" for _ in range(length + draw.randrange(3))) for _ in range(4)]
        split = [text.split() for text in some]
        each = [
            scores.sentence_bleu([*split[:at], *split[at + 1 :]], own, smoothing_function=smooth)
            for at, own in enumerate(split)
        ]
        assert diversity.self_bleu(some) == pytest.approx(sum(each) / 4)


def test_bleu_of_papineni():
    """Sacrebleu's corpus BLEU of one long sentence, where no order lacks a match."""
    sacrebleu = pytest.importorskip("sacrebleu")
    hypothesis = "it is a guide to action which ensures that the military always obeys the commands of the party"
    references = [
        "it is a guide to action that ensures that the military will forever heed party commands",
        "it is the guiding principle which guarantees the military forces always being under the command of the party",
    ]
    expected = sacrebleu.corpus_bleu([hypothesis], [[it] for it in references]).score / 100
    assert diversity.bleu(hypothesis.split(), [it.split() for it in references]) == pytest.approx(expected)


def test_self_bleu_of_same_and_of_other_texts():
    assert diversity.self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1)
    assert diversity.self_bleu(["a b c d", "e f g h"]) == 0
    assert diversity.self_bleu(["alone"]) == 0 == diversity.self_bleu(["", "a"])


def test_compression_ratio_is_bytes_over_gzipped_bytes():
    some = ["Once upon a time, " * 20, "grüße"]
    joined = "\n".join(some).encode()
    assert diversity.compression_ratio(some) == pytest.approx(len(joined) / len(gzip.compress(joined)))
    assert diversity.compression_ratio(["the same words " * 30]) > 5 > 1 > diversity.compression_ratio(["abc"])
    assert diversity.compression_ratio([""]) == 1


def test_repeated_4grams():
    assert diversity.repeated_4grams([1, 2, 3, 4, 5]) == 0
    assert diversity.repeated_4grams([7] * 8) == pytest.approx(1 - 1 / 5)
    assert diversity.repeated_4grams([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)
    assert diversity.repeated_4grams([1, 2, 3]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot answer.",
        "I cannot tell you how to do this.",
        "As an AI language model, I have no opinion.",
        "I won't do that.",
        "I am not able to say.",
        "Unfortunately, I must decline.",
        "It would not be appropriate for me to answer.",
        "I don't feel comfortable with that.",
    ],
)
def test_refusals(text):
    assert diversity.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sorry to hear that! Try tea with honey.",
        "You cannot park here.",
        "I can help with that.",
        "It is not possible for water to burn.",
        "The assistant manager said as much.",
        "Of course. " + "First, boil some water. " * 10 + "I cannot stress this enough.",
    ],
)
def test_no_refusals(text):
    assert not diversity.is_refusal(text)
