"""How diverse, long, repetitive and evasive answers are. Every function is pure; docs/evaluation.md lists the sources.

Functions of one prompt's samples return one number, whose mean over prompts is the measure: samples of one prompt are
not independent, so the prompt is the unit of every error.
"""

from __future__ import annotations

import gzip
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

Item = TypeVar("Item", int, str)

ORDERS = (1, 2, 3, 4, 5)
"""The n of distinct n-grams, as in Kirk et al. (2310.06452)."""
_WORD = re.compile(r"\w+|[^\w\s]")
_BEGINNING = 200  # characters in which a refusal shows itself

REFUSALS = (
    r"i(?:'m| am) (?:very |really |so |truly )?sorry,? (?:but )?(?:i|that|this|we)\b",
    r"i(?:'m| am) (?:unable|not able|not comfortable|not allowed|not permitted|not going)\b",
    r"i (?:can(?:no|')t|can not|won't|will not|must decline|must refuse|refuse|decline)\b",
    r"i (?:do not|don't) (?:feel comfortable|think (?:that )?(?:i|it) (?:can|should|would be))",
    r"i (?:should not|shouldn't|would rather not|am not supposed to)\b",
    r"as an? (?:ai|artificial intelligence|language model|large language model|assistant)\b",
    r"(?:sorry|apologies|unfortunately),? (?:but )?i (?:can|am|do|have|must)\b",
    r"it (?:is|isn't|would be|would not be|wouldn't be) (?:not )?(?:un|in|il)?(?:appropriate|ethical|legal) for me\b",
)
"""Beginnings of refusals, in lower case with straight apostrophes. The idea of such a list is that of
Zou et al. (2307.15043)."""
_REFUSAL = re.compile("|".join(REFUSALS))


def is_refusal(text: str) -> bool:
    """Whether the first 200 characters match one of REFUSALS."""
    return bool(_REFUSAL.search(text[:_BEGINNING].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def words(text: str) -> list[str]:
    """Words and punctuation marks."""
    return _WORD.findall(text)


def ngrams(items: Sequence[Item], n: int) -> Iterable[tuple[Item, ...]]:
    return zip(*(items[start:] for start in range(n)), strict=False)


def repeated_4grams(tokens: Sequence[int]) -> float:
    """The share of an answer's 4-grams that stand in it already: 1 - distinct / all (Welleck et al. 1908.04319).

    0 for an answer of fewer than four tokens.
    """
    grams = list(ngrams(tokens, 4))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts, joined by newlines, over their bytes after gzip (Shaib et al. 2403.00553). 1 for no text."""
    data = "\n".join(texts).encode()
    return len(data) / len(gzip.compress(data, 9)) if data else 1.0


def adjusted_distinct(distinct: int, total: int, vocabulary: int) -> float:
    """N / (V (1 - ((V - 1) / V)^C)): distinct n-grams over those expected of uniform draws (Liu et al. 2022).

    `distinct` is N, `total` is C >= 1, `vocabulary` is V, the number of tokens of the tokenizer, whatever n is (as Kirk
    et al. compute it). For n > 1 there are more possible n-grams than V, so that the measure rises with C once C is no
    longer small beside V: by 3 % up to C = V / 16.
    """
    expected = -vocabulary * math.expm1(total * math.log1p(-1 / vocabulary))
    return distinct / expected


def distinct_ngrams(texts: Sequence[Sequence[int]], vocabulary: int) -> float:
    """Expectation-adjusted distinct n-grams of some texts together, averaged over the n of ORDERS.

    An n that no text is long enough for is left out; without a token there is no diversity: 0.
    """
    values = []
    for n in ORDERS:
        grams = list(chain.from_iterable(ngrams(text, n) for text in texts))
        if grams:
            values.append(adjusted_distinct(len(set(grams)), len(grams), vocabulary))
    return math.fsum(values) / len(values) if values else 0.0


def distinct_across(answers: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> list[float]:
    """Expectation-adjusted distinct n-grams across prompts, as one value a prompt whose mean is the measure.

    `answers` holds the token ids of K samples for each of P >= 2 prompts. The measure takes one sample of each prompt
    together, and averages over the K places. It is no mean over prompts, so a prompt's value is its jackknife
    pseudo-value (Tukey 1958), moved so that their mean is the measure itself: their spread gives the jackknife's error.
    [] where a prompt has no sample.
    """
    places = min(len(samples) for samples in answers)
    count = len(answers)
    values = [0.0] * count if places else []
    for place in range(places):
        texts = [samples[place] for samples in answers]
        whole, without = _leave_one_out(texts, vocabulary)
        middle = math.fsum(without) / count
        for prompt, left in enumerate(without):
            values[prompt] += (whole + (count - 1) * (middle - left)) / places
    return values


def _leave_one_out(texts: Sequence[Sequence[int]], vocabulary: int) -> tuple[float, list[float]]:
    """(the measure of all texts, the measure without each of them), averaged over the orders that any text has."""
    whole: list[float] = []
    without: list[list[float]] = [[] for _ in texts]
    for n in ORDERS:
        grams = [Counter(ngrams(text, n)) for text in texts]
        everything: Counter[tuple[int, ...]] = Counter()
        for own in grams:
            everything.update(own)
        total = sum(everything.values())
        if not total:
            continue
        whole.append(adjusted_distinct(len(everything), total, vocabulary))
        for place, own in enumerate(grams):
            left = total - sum(own.values())
            only_here = sum(everything[gram] == times for gram, times in own.items())
            if left:
                without[place].append(adjusted_distinct(len(everything) - only_here, left, vocabulary))
    return _mean(whole), [_mean(values) for values in without]


def self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU-4 of each text against all the others (Zhu et al. 1802.01886). 1: all are the same.

    0 for fewer than two texts: there is nothing to be like.
    """
    tokens = [words(text) for text in texts]
    if len(tokens) < 2:
        return 0.0
    return _mean([bleu(own, [*tokens[:place], *tokens[place + 1 :]]) for place, own in enumerate(tokens)])


def bleu(hypothesis: Sequence[str], references: Sequence[Sequence[str]], highest: int = 4) -> float:
    """Sentence BLEU (Papineni et al. 2002) with the closest reference's length in the brevity penalty.

    Where an order has no match, 0.1 is counted instead of 0 (smoothing 1 of Chen and Cherry 2014, the one that
    Texygen's self-BLEU takes); without a matching word it is 0.
    """
    if not hypothesis:
        return 0.0
    logs = 0.0
    for n in range(1, highest + 1):
        counts = Counter(ngrams(hypothesis, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(ngrams(reference, n))
        matches = sum(min(times, most[gram]) for gram, times in counts.items())
        if n == 1 and not matches:
            return 0.0
        logs += math.log((matches or 0.1) / max(1, len(hypothesis) - n + 1)) / highest
    length = len(hypothesis)
    closest = min((len(reference) for reference in references), key=lambda other: (abs(other - length), other))
    return math.exp(logs + min(0.0, 1 - closest / length))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
