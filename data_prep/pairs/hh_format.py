r"""Reads and writes Anthropic HH-RLHF's format: "\n\nHuman: ...\n\nAssistant: ...".

A text consists of turns, each opened by "\n\nHuman:" or "\n\nAssistant:". They alternate: Human is first, Assistant
last. The prompt is the text up to and including its last "\n\nAssistant:", unchanged (whitespace before the first turn
becomes "\n\n"). The response is one space and the last turn, stripped. So chosen == prompt + chosen_response, except
for whitespace at the start and end of the text and of the response.

The common prompt of both sides is found by comparing turns, not characters: two responses may both begin with "I'm
sorry, but", and a prompt that ended there would leave half a sentence as the response.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from data_prep.pairs.conversation import Conversation, Drop, Pair, Rewards, make_conversation

MARK = re.compile(r"\n\n(Human|Assistant):")
_ROLES = ("Human", "Assistant")


class Turn(NamedTuple):
    """`text` is the stripped text after the marker; `start` and `end` are the marker's offsets in characters."""

    role: str
    text: str
    start: int
    end: int


def read_turns(text: str) -> list[Turn]:
    """The turns of a text in HH's form, in order; [] if the text does not begin with a turn."""
    marks = list(MARK.finditer(text))
    if not marks or marks[0].start() != 0:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        Turn(mark[1], text[mark.end() : end].strip(), mark.start(), mark.end())
        for mark, end in zip(marks, ends, strict=True)
    ]


def read_texts(chosen: str, rejected: str, system: str = "", rewards: Rewards | None = None) -> Conversation | Drop:
    """Two whole conversations in HH's form -> a Conversation, or the reason to drop them."""
    chosen, rejected = as_text(chosen), as_text(rejected)
    chosen_turns = read_turns(chosen)
    if not in_order(chosen_turns):
        return Drop.TURN_ORDER
    turns = [turn.text for turn in chosen_turns[:-1]]
    prompt = chosen[: chosen_turns[-1].end]
    if rejected.startswith(prompt) and not MARK.search(rejected, len(prompt)):  # nearly always: skip parsing it
        answer = rejected[len(prompt) :].strip()
    else:
        rejected_turns = read_turns(rejected)
        if not in_order(rejected_turns):
            return Drop.TURN_ORDER
        if turns != [turn.text for turn in rejected_turns[:-1]]:
            return Drop.PROMPTS_DIFFER
        answer = rejected_turns[-1].text
    return make_conversation(turns, chosen_turns[-1].text, answer, system, prompt, rewards)


def as_text(text: str) -> str:
    """The text with the "\\n\\n" before its first turn, which some copies of HH-RLHF have lost."""
    return text if text.startswith("\n\nHuman:") else "\n\n" + text.lstrip()


def in_order(turns: list[Turn]) -> bool:
    """Whether the turns are Human, Assistant, Human, ..., Assistant."""
    return bool(turns) and [turn.role for turn in turns] == [*_ROLES] * (len(turns) // 2)


def render(conversation: Conversation) -> Pair | Drop:
    """The pair in HH's form. A system prompt stands before the first turn, as Anthropic's own prompts had it.

    The prompt ends without whitespace and each response begins with exactly one space, so that byte-level BPE
    tokenizers do not merge a token across the border.
    """
    prompt = conversation.text
    if prompt is None or conversation.system:
        texts = ("\n\n" + conversation.system, *conversation.turns, conversation.chosen, conversation.rejected)
        if any(MARK.search(text) for text in texts):
            return Drop.MARKER
        turns = (f"\n\n{_ROLES[number % 2]}: {text}" for number, text in enumerate(conversation.turns))
        prompt = conversation.system + "".join(turns) + "\n\nAssistant:"
    chosen, rejected = f" {conversation.chosen}", f" {conversation.rejected}"
    return Pair(prompt, chosen, rejected, conversation.turns[0], conversation.rewards)
