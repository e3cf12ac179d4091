"""The forms in which sources write preference pairs: a row -> a Talk, or the reason to drop it.

hh        {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}, whole conversations (see hh_format)
prompt    {"prompt": ..., "chosen": ..., "rejected": ...}, the prompt a question or a conversation in HH's form, the
          others responses; also with NeMo-Aligner's own keys chosen_response and rejected_response
messages  {"chosen": [{"role": "user", "content": ...}, ...], "rejected": ...}, whole conversations (UltraFeedback), or
          responses to a "prompt" that is a list too; "from" and "value" (ShareGPT) are taken as well

A text under "system" is the system prompt of a row that brings none along. Other keys are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import TypeVar

from data_prep.pairs import hh_format
from data_prep.pairs.conversation import BadRow, Drop, Talk, talk

_ROLES = {name: "user" for name in ("user", "human", "prompter")}
_ROLES |= {name: "assistant" for name in ("assistant", "gpt", "bot", "model", "chatgpt")}
_ROLES["system"] = "system"

#: All the keys that a form may need: of a table only these columns are read.
KEYS = ("prompt", "system", "chosen", "rejected", "chosen_response", "rejected_response")

_Kind = TypeVar("_Kind", str, list[object])

#: (role, stripped text), the system prompt among them if there is one
_Turns = list[tuple[str, str]]


def auto(row: Mapping[str, object]) -> Talk | Drop:
    """By the types of the row's values; each row for itself, so that a file may mix the forms."""
    chosen = row.get("chosen")
    if isinstance(chosen, list):
        return messages(row)
    if row.get("prompt") is None or _is_conversation(chosen):
        return hh_format.to_talk(row)
    return prompt(row)


def prompt(row: Mapping[str, object]) -> Talk | Drop:
    """Prompt and two responses, all text. Raises BadRow."""
    given = _field(row, "prompt", str)
    chosen, rejected = (_field(row, key, str) for key in _response_keys(row))
    turns = [turn.text for turn in _asked(given)]
    if not turns:
        return Drop.TURN_ORDER if hh_format.read_turns(hh_format.as_text(given)) else Drop.EMPTY_TURN
    return talk(turns, chosen.strip(), rejected.strip(), hh_format.system_of(row))


def messages(row: Mapping[str, object]) -> Talk | Drop:
    """Lists of messages. Raises BadRow."""
    sides = []
    for key in _response_keys(row):
        turns = _read(_field(row, key, list), key)
        if isinstance(turns, list) and turns and turns[0][0] == "assistant":  # a response alone
            before = _before(row)
            turns = [*before, *turns] if isinstance(before, list) else before
        if isinstance(turns, Drop):
            return turns
        sides.append(turns)
    system = ""
    if sides[0] and sides[0][0][0] == "system":
        system = sides[0][0][1]
    chosen, rejected = ([turn for turn in side[:1] if turn[0] != "system"] + side[1:] for side in sides)
    if not _in_order(chosen) or not _in_order(rejected):
        return Drop.TURN_ORDER
    if sides[0][:-1] != sides[1][:-1]:
        return Drop.PROMPTS_DIFFER
    return talk([text for _, text in chosen[:-1]], chosen[-1][1], rejected[-1][1], system or hh_format.system_of(row))


#: What --format names: row -> Talk or Drop, raising BadRow.
FORMS: dict[str, Callable[[Mapping[str, object]], Talk | Drop]] = {
    "auto": auto,
    "hh": hh_format.to_talk,
    "prompt": prompt,
    "messages": messages,
}


def _response_keys(row: Mapping[str, object]) -> tuple[str, str]:
    ends = "_response" if "chosen" not in row and "chosen_response" in row else ""
    return f"chosen{ends}", f"rejected{ends}"


def _field(row: Mapping[str, object], key: str, kind: type[_Kind]) -> _Kind:
    value = row.get(key)
    if isinstance(value, kind):
        return value
    wanted = "text" if kind is str else "a list of messages"
    raise BadRow(f"{key!r} is {type(value).__name__}, not {wanted}" if key in row else f"there is no key {key!r}")


def _is_conversation(value: object) -> bool:
    if not isinstance(value, str):
        return False
    text = hh_format.as_text(value)
    return text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def _asked(given: str) -> list[hh_format.Turn]:
    """The turns of a prompt: a conversation in HH's form that waits for its answer, or else one question."""
    turns = hh_format.read_turns(hh_format.as_text(given))
    if turns and turns[-1].role == "Assistant" and not turns[-1].text and hh_format.in_order(turns):
        return turns[:-1]
    if turns and hh_format.in_order([*turns, hh_format.Turn("Assistant", "", 0, 0)]):
        return turns
    question = given.strip()
    return [hh_format.Turn("Human", question, 0, 0)] if question and not turns else []


def _before(row: Mapping[str, object]) -> _Turns | Drop:
    """What the responses answer: messages or a text under "prompt"."""
    given = row.get("prompt")
    if isinstance(given, str):
        return [(role, turn.text) for role, turn in zip(cycle(("user", "assistant")), _asked(given), strict=False)]
    return _read(_field(row, "prompt", list), "prompt")


def _read(found: list[object], key: str) -> _Turns | Drop:
    turns: _Turns = []
    for number, message in enumerate(found):
        where = f"{key}[{number}]"
        if not isinstance(message, Mapping):
            raise BadRow(f"{where} is {type(message).__name__}, not a message")
        role, text = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(text, str):
            what = "role" if not isinstance(role, str) else "content"
            raise BadRow(f"{where} has no text under {what!r}")
        known = _ROLES.get(role.strip().lower())
        if known is None:
            return Drop.ROLE
        if known == "system" and number:
            return Drop.TURN_ORDER
        turns.append((known, text.strip()))
    return turns


def _in_order(turns: _Turns) -> bool:
    roles = [role for role, _ in turns]
    return bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)
