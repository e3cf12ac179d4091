r"""Anthropic HH-RLHF's form: {"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": ...} -> a Pair.

The rule. A text is turns, each opened by "\n\nHuman:" or "\n\nAssistant:"; they alternate, Human first and Assistant
last. The prompt is the text up to its last "\n\nAssistant:", which ends it, as it stands (whitespace before the first
turn becomes "\n\n"). The response is one space and the last turn without the whitespace around it. Hence chosen ==
prompt + chosen_response, but for whitespace at the start and end of the text and of the response.

What the two sides share is found by turns, not by characters: two responses that both begin "I'm sorry, but" share
these characters too, and a prompt cut there would leave half a sentence as the response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.pairs import BadRow, Drop, Pair

_MARK = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Turn:
    """`text` is what stands after the marker, whitespace around it removed; `start` and `end` its marker's place."""

    role: str
    text: str
    start: int
    end: int


def read_turns(text: str) -> list[Turn]:
    """The turns of a text in HH's form, in order. No turns for a text that does not begin with one."""
    marks = list(_MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Turn(mark[1], text[mark.end() : end].strip(), mark.start(), mark.end())
        for mark, end in zip(marks, ends, strict=True)
    ]


def to_pair(row: Mapping[str, object]) -> Pair | Drop:
    """A row with the texts `chosen` and `rejected` -> a Pair, or the reason to drop it. Other keys are ignored.

    Raises BadRow where a key is missing or is not a string.
    """
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    chosen_turns, rejected_turns = read_turns(chosen), read_turns(rejected)
    if not _in_order(chosen_turns) or not _in_order(rejected_turns):
        return Drop.TURN_ORDER
    if [turn.text for turn in chosen_turns[:-1]] != [turn.text for turn in rejected_turns[:-1]]:
        return Drop.PROMPTS_DIFFER
    if not all(turn.text for turn in chosen_turns[:-1]):
        return Drop.EMPTY_TURN
    chosen_text, rejected_text = chosen_turns[-1].text, rejected_turns[-1].text
    if not chosen_text or not rejected_text:
        return Drop.EMPTY_RESPONSE
    if chosen_text == rejected_text:
        return Drop.EQUAL_RESPONSES
    prompt = chosen[: chosen_turns[-1].end]
    return Pair(prompt, f" {chosen_text}", f" {rejected_text}", opening=chosen_turns[0].text)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = f"{key!r} is {type(value).__name__}, not text" if key in row else f"there is no key {key!r}"
        raise BadRow(f"{what} (HH pairs have 'chosen' and 'rejected')")
    return "\n\n" + value.lstrip()


def _in_order(turns: list[Turn]) -> bool:
    """Human, Assistant, Human, ..., Assistant."""
    expected = ["Human", "Assistant"] * (len(turns) // 2)
    return bool(turns) and [turn.role for turn in turns] == expected
