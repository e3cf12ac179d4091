r"""Anthropic HH-RLHF's way of writing: "\n\nHuman: ...\n\nAssistant: ...", read into turns and written from them.

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
from typing import NamedTuple

from data_prep.pairs.conversation import BadRow, Drop, Pair, Talk, talk

MARK = re.compile(r"\n\n(Human|Assistant):")
_ROLES = ("Human", "Assistant")


class Turn(NamedTuple):
    """`text` is what stands after the marker, whitespace around it removed; `start` and `end` its marker's place."""

    role: str
    text: str
    start: int
    end: int


def read_turns(text: str) -> list[Turn]:
    """The turns of a text in HH's form, in order. No turns for a text that does not begin with one."""
    marks = list(MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Turn(mark[1], text[mark.end() : end].strip(), mark.start(), mark.end())
        for mark, end in zip(marks, ends, strict=True)
    ]


def to_talk(row: Mapping[str, object]) -> Talk | Drop:
    """A row with the whole conversations `chosen` and `rejected` -> a Talk, or the reason to drop it.

    Other keys are ignored. Raises BadRow where a key is missing or is not a string.
    """
    chosen, rejected = as_text(_text(row, "chosen")), as_text(_text(row, "rejected"))
    chosen_turns = read_turns(chosen)
    if not in_order(chosen_turns):
        return Drop.TURN_ORDER
    turns = [turn.text for turn in chosen_turns[:-1]]
    prompt = chosen[: chosen_turns[-1].end]
    if rejected.startswith(prompt) and not MARK.search(rejected, len(prompt)):  # nearly all: no need to read it twice
        answer = rejected[len(prompt) :].strip()
    else:
        rejected_turns = read_turns(rejected)
        if not in_order(rejected_turns):
            return Drop.TURN_ORDER
        if turns != [turn.text for turn in rejected_turns[:-1]]:
            return Drop.PROMPTS_DIFFER
        answer = rejected_turns[-1].text
    return talk(turns, chosen_turns[-1].text, answer, system_of(row), prompt)


def system_of(row: Mapping[str, object]) -> str:
    """The system prompt that some sets keep in a column of its own; "" where it is null. Raises BadRow."""
    value = row.get("system") or ""
    if not isinstance(value, str):
        raise BadRow(f"'system' is {type(value).__name__}, not text")
    return value.strip()


def as_text(text: str) -> str:
    """With the "\\n\\n" before the first turn, which some copies of HH-RLHF have lost."""
    return "\n\n" + text.lstrip()


def in_order(turns: list[Turn]) -> bool:
    """Human, Assistant, Human, ..., Assistant."""
    return bool(turns) and [turn.role for turn in turns] == [*_ROLES] * (len(turns) // 2)


def _text(row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = f"{key!r} is {type(value).__name__}, not text" if key in row else f"there is no key {key!r}"
        raise BadRow(f"{what} (HH pairs have 'chosen' and 'rejected')")
    return value


def render(talk: Talk) -> Pair | Drop:
    """The pair in HH's form. A system prompt stands before the first turn, as Anthropic's own prompts had it.

    The prompt ends without whitespace and each response begins with exactly one space, so that byte-level BPE
    tokenizers do not merge a token across the border.
    """
    prompt = talk.text
    if prompt is None or talk.system:
        texts = ("\n\n" + talk.system, *talk.turns, talk.chosen, talk.rejected)
        if any(MARK.search(text) for text in texts):
            return Drop.MARKER
        said = (f"\n\n{_ROLES[number % 2]}: {text}" for number, text in enumerate(talk.turns))
        prompt = talk.system + "".join(said) + "\n\nAssistant:"
    return Pair(prompt, f" {talk.chosen}", f" {talk.rejected}", opening=talk.turns[0])
