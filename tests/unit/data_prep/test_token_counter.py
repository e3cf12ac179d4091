"""Counting tokens piece by piece gives what the whole tokenizer gives: of any text, for every kind that is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.pairs import token_counter, tokenizer_files
from data_prep.pairs.conversation import Drop, Pair
from data_prep.pairs.pair_tokens import PairTokenizer
from data_prep.pairs.token_counter import TokenCounter
from tests.unit.prepare_tools import KINDS, byte_level

#: What expressions of splits care about: spaces, line ends, contractions, digits, marks, scripts, added tokens.
BITS = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x1c", "'s", "'LL", "'", "It", "don't"]
BITS += [
    "12345",
    "3.14",
    "٣",
    "?",
    "!?",
    "...",
    ":",
    "/",
    "-",
    "_",
    "é",
    "e\u0301",
    "ß",
    "你好",
    "🙂",
    "👩‍🚀",
    "\u200b",
]
BITS += [
    "Human:",
    "\n\nHuman: ",
    "\n\nAssistant:",
    "<|eot_id|>",
    "<|eot",
    "_id|>",
    "<|",
    "<|x|><|eot_id|>",
    "<s>",
    "the",
]
texts = st.lists(st.sampled_from(BITS) | st.text(max_size=4), max_size=14).map("".join)


def made(kind: str) -> tuple[TokenCounter, Callable[[str], list[int]]]:
    tokenizer = byte_level(kind)

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found = TokenCounter.of(tokenizer.to_str().encode(), encode)
    assert found is not None
    return found, encode


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_whole_text(kind: str) -> None:
    counter, encode = made(kind)

    @settings(max_examples=250, deadline=None)
    @given(text=texts)
    @example(text="a 'stuff' I'll  \n - x1 23  4")
    @example(text="wordé word 🙂x \n\n")
    def check(text: str) -> None:
        assert counter.count(text) == len(encode(text))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_borders_are_those_of_the_whole_texts(kind: str) -> None:
    counter, encode = made(kind)

    @settings(max_examples=250, deadline=None)
    @given(prompt=texts, responses=st.tuples(texts, texts))
    @example(prompt="<|eot_id|>\n\n", responses=("It", " the"))
    @example(prompt="\n\nHuman: It\n\nAssistant:", responses=(" It", " 你好"))
    @example(prompt="x<|", responses=("eot_id|>", " the"))
    def check(prompt: str, responses: tuple[str, str]) -> None:
        found = counter.sides(prompt, responses)
        start, *whole = (encode(text) for text in (prompt, *(prompt + response for response in responses)))
        if found is not None:
            assert found == (len(start), *map(len, whole))
            assert all(ids[: len(start)] == start for ids in whole)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_hh_and_llama3_borders_need_no_second_look(kind: str) -> None:
    counter, _ = made(kind)
    assert counter.sides("\n\nHuman: It?\n\nAssistant:", (" It, 🙂", " 12")) is not None
    parted = counter.sides("<|eot_id|>\n\n", ("It", "🙂"))
    assert (parted is None) == (kind != "llama3")  # GPT-2's splits the two line ends when a word follows


def test_memory_of_pieces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counter, "_MOST", 10)
    counter, encode = made("gpt2")
    for number in range(100):
        text = f"Human {chr(65 + number % 26) * (number % 80)} It"
        assert counter.count(text) == len(encode(text))
        assert len(counter._counts) <= 10


def changed(**changes: Any) -> bytes:
    found = json.loads(byte_level("gpt2").to_str())
    return json.dumps({**found, **changes}).encode()


@pytest.mark.parametrize(
    "model",
    [
        changed(normalizer={"type": "NFC"}),
        changed(pre_tokenizer=None),
        changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
        changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}),
        changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}),
        changed(pre_tokenizer={"type": "Metaspace"}),
        changed(added_tokens=[{"content": "a b"}]),
        changed(added_tokens=[{"content": "<x>", "rstrip": True}]),
        changed(added_tokens=[{"content": "<x<"}]),
    ],
)
def test_tokenizers_of_other_kinds_are_left_to_the_whole_text(model: bytes) -> None:
    assert TokenCounter.of(model, lambda text: []) is None


@pytest.mark.parametrize("kind", [*KINDS, "characters"])
def test_measured_as_nemo_aligner_reads_it(kind: str, tmp_path: Path) -> None:
    """What comes out satisfies DPOModelDataset's assertion, and says the same texts as before."""
    byte_level(kind).save(str(tmp_path / "tokenizer.json"))
    tokenizer = PairTokenizer(tokenizer_files.read(tmp_path))
    tokenizer.load()

    @settings(max_examples=150, deadline=None)
    @given(prompt=texts, responses=st.tuples(texts, texts))
    def check(prompt: str, responses: tuple[str, str]) -> None:
        (one,) = tokenizer.measure([Pair(prompt, *responses, opening="")])
        if isinstance(one, Drop):
            assert one is Drop.TOKENS_MERGE
            return
        sides = [one.pair.prompt + text for text in (one.pair.chosen_response, one.pair.rejected_response)]
        assert sides == [prompt + response for response in responses]
        start, *ids = tokenizer.encode([one.pair.prompt, *sides])
        assert all(side[:-1][: len(start)] == start for side in ids)
        assert one.length == max(map(len, ids))
        assert one.moved == (one.pair.prompt != prompt)

    check()
