"""HH-RLHF's text form: any text in, a pair or a reason out; and a pair always re-reads to the text it came from."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.pairs.conversation import BadRow, Conversation, Drop, Pair
from data_prep.pairs.forms import RowReader
from data_prep.pairs.hh_format import read_turns, render

# Pieces of texts in which everything can go wrong: markers in odd places, whitespace, what only looks like a marker.
PIECES = [
    "\n\nHuman:",
    "\n\nAssistant:",
    "\n\nHuman: ",
    "\n\nAssistant: ",
    "Human:",
    "\n",
    " ",
    "\n\n",
    "\t",
    "hi",
    "Ä?",
    "\u2028",
]
messy = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=10).map("".join)
said = (
    st.text(min_size=1, max_size=20)
    .map(str.strip)
    .filter(lambda text: text and not re.search("(Human|Assistant):|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]", text))
)
json_values = st.none() | st.booleans() | st.integers() | st.floats() | messy | st.lists(messy, max_size=2)


def to_pair(row: dict[str, Any]) -> Pair | Drop:
    """Read and written, both in HH's form."""
    (found,) = RowReader("hh").read(row)
    return render(found) if isinstance(found, Conversation) else found


def talk(*turns: str) -> str:
    """talk("Hi", "Hello!") is a text in HH's form: Human says the first, Assistant the second, and so on."""
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[number % 2]}: {text}" for number, text in enumerate(turns))


@given(chosen=messy, rejected=messy)
@example(chosen="", rejected="")
@example(chosen=talk("q", "a"), rejected=talk("q", "b") + "\n\nHuman:")
def test_any_text_gives_a_sound_pair_or_a_reason(chosen: str, rejected: str) -> None:
    got = to_pair({"chosen": chosen, "rejected": rejected})
    if isinstance(got, Drop):
        return
    assert re.fullmatch(r"\n\nHuman:.*\n\nAssistant:", got.prompt, re.DOTALL)
    for response, text in ((got.chosen_response, chosen), (got.rejected_response, rejected)):
        assert re.fullmatch(r" \S(.*\S)?", response, re.DOTALL)
        head, mark, last = ("\n\n" + text.lstrip()).rpartition("\n\nAssistant:")
        assert response == " " + last.strip()
        # The rejected side's own spacing between turns may differ; what was said may not.
        assert (head + mark).split() == got.prompt.split()
    assert got.prompt == ("\n\n" + chosen.lstrip()).rpartition("\n\nAssistant:")[0] + "\n\nAssistant:"
    assert got.chosen_response != got.rejected_response


@given(
    turns=st.lists(said, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1), chosen=said, rejected=said
)
def test_clean_conversation_comes_back_to_the_letter(turns: list[str], chosen: str, rejected: str) -> None:
    got = to_pair({"chosen": talk(*turns, chosen), "rejected": talk(*turns, rejected)})
    if chosen == rejected:
        assert got is Drop.EQUAL_RESPONSES
        return
    assert isinstance(got, Pair)
    assert got.prompt + got.chosen_response == talk(*turns, chosen)
    assert got.prompt + got.rejected_response == talk(*turns, rejected)
    assert got.opening == turns[0]
    assert (got.row()["chosen_reward"], got.row()["rejected_reward"]) == (1.0, 0.0)


@given(row=st.dictionaries(st.sampled_from(["chosen", "rejected", "prompt"]), json_values))
def test_any_row_is_a_pair_a_reason_or_a_bad_row(row: dict[str, Any]) -> None:
    texts = all(isinstance(row.get(key), str) for key in ("chosen", "rejected"))
    if texts:
        assert isinstance(to_pair(row), Pair | Drop)
    else:
        with pytest.raises(BadRow, match="chosen|rejected"):
            to_pair(row)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "", Drop.TURN_ORDER),
        ("no turns", talk("q", "a"), Drop.TURN_ORDER),
        ("A preface." + talk("q", "a"), "A preface." + talk("q", "b"), Drop.TURN_ORDER),
        (talk("q", "a", "q"), talk("q", "b", "q"), Drop.TURN_ORDER),
        ("\n\nAssistant: a", "\n\nAssistant: b", Drop.TURN_ORDER),
        (talk("q", "a") + "\n\nAssistant: b", talk("q", "b"), Drop.TURN_ORDER),
        ("\n\nHuman: q\n\nHuman: r\n\nAssistant: a", talk("q", "a"), Drop.TURN_ORDER),
        (talk("q", "a"), talk("r", "b"), Drop.PROMPTS_DIFFER),
        (talk("q", "a"), talk("q", "a", "r", "b"), Drop.PROMPTS_DIFFER),
        (talk("q", "a", "r", "x"), talk("q", "b", "r", "y"), Drop.PROMPTS_DIFFER),
        (talk("", "a"), talk("", "b"), Drop.EMPTY_TURN),
        (talk("q", " \n", "r", "a"), talk("q", "", "r", "b"), Drop.EMPTY_TURN),
        (talk("q", "a"), talk("q", ""), Drop.EMPTY_RESPONSE),
        (talk("q", "\u2003\n "), talk("q", "a"), Drop.EMPTY_RESPONSE),
        (talk("q", "a"), talk("q", " a\n"), Drop.EQUAL_RESPONSES),
        (talk("q", "a\x07"), talk("q", "b"), Drop.CONTROL),
        (talk("q \ud800", "a"), talk("q \ud800", "b"), Drop.NOT_TEXT),
    ],
)
def test_reason(chosen: str, rejected: str, reason: Drop) -> None:
    assert to_pair({"chosen": chosen, "rejected": rejected}) is reason


def test_shared_beginning_of_the_responses_stays_in_the_responses() -> None:
    sorry = "I'm sorry, but I "
    got = to_pair({"chosen": talk("q", sorry + "can't."), "rejected": talk("q", sorry + "won't.")})
    assert isinstance(got, Pair)
    assert got.prompt == "\n\nHuman: q\n\nAssistant:"
    assert got.chosen_response == " I'm sorry, but I can't."


def test_spacing_around_response_and_text_is_the_only_thing_changed() -> None:
    chosen = "Human:  two  spaces \n\nAssistant:\n- a list\n\n- of two\n"
    got = to_pair({"chosen": chosen, "rejected": "\n\nHuman: two  spaces\n\nAssistant: no"})
    assert isinstance(got, Pair)
    assert got.prompt == "\n\nHuman:  two  spaces \n\nAssistant:"
    assert got.chosen_response == " - a list\n\n- of two"


def test_lone_marker_words_are_text() -> None:
    turns = read_turns(talk("Who said 'Human: hi'?", "Nobody.\nAssistant: is a word here"))
    assert [turn.role for turn in turns] == ["Human", "Assistant"]
    assert turns[1].text == "Nobody.\nAssistant: is a word here"
