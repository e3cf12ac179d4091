"""Turns a Preference, which a form read from a row, into Conversations: splits it into turns and checks them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import cycle
from typing import NamedTuple

from data_prep.pairs import hh_format, rendered
from data_prep.pairs.conversation import BadRow, Conversation, Drop, Rewards, make_conversation

_ROLES = dict.fromkeys(("user", "human", "prompter"), "user")
_ROLES |= dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant")
_ROLES |= {"system": "system", "developer": "system"}  # OpenAI's newer name

#: (role, stripped text), with the system prompt if there is one
_Turns = list[tuple[str, str]]


class Preference(NamedTuple):
    """A prompt, the preferred response, and one or more rejected responses.

    `prompt` is a text or a list of messages, or None if the responses are whole conversations. A response is a text, a
    message or a list of messages. `chosen_reward` is None if the source has no rewards.
    """

    prompt: object
    chosen: object
    rejected: tuple[object, ...]
    system: object = None
    chosen_reward: float | None = None
    rejected_rewards: tuple[float, ...] = ()
    """As many as `rejected`, or none."""
    best_first: bool = False
    """Whether `rejected` is known to be in the order of preference."""


def conversations(
    preference: Preference, which: str, keep_rendered: bool, by_reward: bool = False
) -> list[Conversation | Drop]:
    """One Conversation for each rejected response that `which` selects: the first, the worst, or all. Raises BadRow.

    With `by_reward` the response with the higher reward becomes the chosen one, whatever the keys are called.
    """
    count = len(preference.rejected)
    if not count:
        return [Drop.EMPTY_RESPONSE]
    selected = [0]
    if which == "all":
        selected = list(range(count))
    elif which == "worst" and count > 1:
        if not preference.best_first:
            remedy = "use --rejected first or all"
            raise BadRow("'rejected' has no scores or ranks, so the worst is not known", remedy)
        selected = [count - 1]
    made: list[Conversation | Drop] = []
    for number in selected:
        rewards = None
        if preference.chosen_reward is not None and preference.rejected_rewards:
            rewards = (preference.chosen_reward, preference.rejected_rewards[number])
        if by_reward and rewards is None:
            raise BadRow("there are no rewards to choose by", "name them: --map chosen_reward=KEY,rejected_reward=KEY")
        if by_reward and rewards and rewards[0] == rewards[1]:
            made.append(Drop.TIE)
        elif by_reward and rewards and rewards[0] < rewards[1]:
            swapped = preference._replace(chosen=preference.rejected[number])
            made.append(_conversation(swapped, preference.chosen, rewards[::-1], keep_rendered))
        else:
            made.append(_conversation(preference, preference.rejected[number], rewards, keep_rendered))
    return made


def is_conversation(value: object) -> bool:
    """Whether `value` is a whole conversation in HH's form."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def _conversation(
    preference: Preference, rejected: object, rewards: Rewards | None, keep_rendered: bool
) -> Conversation | Drop:
    prompt, chosen = preference.prompt, preference.chosen
    system = _system(preference.system)
    if _is_encoded(prompt) or (_is_encoded(chosen) and _is_encoded(rejected)):
        why = f"{'prompt' if _is_encoded(prompt) else 'chosen'!r} is a list of messages written as text"
        raise BadRow(why, "write JSON Lines or Parquet from the lists themselves")
    if isinstance(chosen, str) and isinstance(rejected, str) and (prompt is None or isinstance(prompt, str)):
        if prompt is None and is_conversation(chosen):
            return hh_format.read_texts(chosen, rejected, system, rewards)
        if (marked := rendered.find(chosen if prompt is None else prompt)) is not None:
            return _rendered(marked, prompt, chosen, rejected, rewards, keep_rendered)
        if prompt is None:
            in_turns = is_conversation(rejected) or "\n\nAssistant:" in hh_format.as_text(chosen)
            return Drop.TURN_ORDER if in_turns or not chosen.strip() else Drop.NO_PROMPT
    return _turns(preference, rejected, system, rewards)


def _is_encoded(value: object) -> bool:
    """Whether a text is a list of messages in JSON, or as Python prints it."""
    return isinstance(value, str) and value[:2] == "[{" and re.search(r"""["'](role|from)["']:""", value) is not None


def _rendered(
    marked: rendered.Rendered, prompt: str | None, chosen: str, rejected: str, rewards: Rewards | None, keep: bool
) -> Conversation | Drop:
    if not keep:
        raise RenderedPrompt(marked.style)
    if prompt is None:
        prompt = chosen[: marked.prompt_end]
        if not rejected.startswith(prompt):
            return Drop.PROMPTS_DIFFER
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    made = make_conversation([marked.opening], chosen, rejected, text=prompt, rewards=rewards)
    return made if isinstance(made, Drop) else made._replace(rendered=True)


def _turns(preference: Preference, rejected: object, system: str, rewards: Rewards | None) -> Conversation | Drop:
    before = _read_prompt(preference.prompt)
    said: list[_Turns] = []
    for key, value in (("chosen", preference.chosen), ("rejected", rejected)):
        turns = _read_response(value, key)
        if isinstance(turns, Drop):
            return turns
        said.append(turns)
    in_messages = isinstance(preference.prompt, list)
    if in_messages and isinstance(before, list) and before and any(turns[-1:] == before[-1:] for turns in said):
        before = before[:-1]  # some sets repeat a response, most often the chosen one, at the end of their messages
    sides: list[_Turns] = []
    for turns in said:
        whole = _whole(before, turns, in_messages)
        if isinstance(whole, Drop):
            return whole
        sides.append(whole)
    if sides[0] and sides[0][0][0] == "system":
        system = sides[0][0][1] or system
    good, bad = ([turn for turn in side[:1] if turn[0] != "system"] + side[1:] for side in sides)
    if not _in_order(good) or not _in_order(bad):
        return Drop.TURN_ORDER
    if sides[0][:-1] != sides[1][:-1]:
        return Drop.PROMPTS_DIFFER
    if (marked := rendered.find(good[0][1])) is not None:
        raise RenderedPrompt(marked.style)
    return make_conversation([text for _, text in good[:-1]], good[-1][1], bad[-1][1], system, rewards=rewards)


class RenderedPrompt(BadRow):
    """A prompt with the markers of a chat format, where plain text is expected."""

    drop = Drop.RENDERED

    def __init__(self, style: str) -> None:
        why = f"the prompt is already rendered (it has the markers of {style})"
        super().__init__(why, "give the plain texts, or keep rendered prompts unchanged with --rendered keep")


def _system(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"'system' is {type(value).__name__}, not text")
    return value.strip()


def _read_prompt(prompt: object) -> _Turns | Drop | None:
    """The turns that a response answers; None if there is no prompt."""
    if prompt is None:
        return None
    if isinstance(prompt, str):
        turns_of_prompt = _prompt_turns(prompt)
        if not turns_of_prompt:
            return Drop.TURN_ORDER if hh_format.read_turns(hh_format.as_text(prompt)) else Drop.EMPTY_TURN
        return [(role, turn.text) for role, turn in zip(cycle(("user", "assistant")), turns_of_prompt, strict=False)]
    if not isinstance(prompt, list):
        raise BadRow(f"'prompt' is {type(prompt).__name__}, neither text nor a list of messages")
    return _read_messages(prompt, "prompt")


def _prompt_turns(given: str) -> list[hh_format.Turn]:
    """The turns of a prompt: a conversation in HH's form that lacks its last answer, or else one question."""
    turns = hh_format.read_turns(hh_format.as_text(given))
    if turns and turns[-1].role == "Assistant" and not turns[-1].text and hh_format.in_order(turns):
        return turns[:-1]
    if turns and hh_format.in_order([*turns, hh_format.Turn("Assistant", "", 0, 0)]):
        return turns
    question = given.strip()
    return [hh_format.Turn("Human", question, 0, 0)] if question and not turns else []


def _read_response(value: object, key: str) -> _Turns | Drop:
    """The response's turns: the answer alone, or the conversation that ends with it."""
    if isinstance(value, str):
        return [("assistant", value.strip())]
    if isinstance(value, (list, Mapping)):
        return _read_messages(value if isinstance(value, list) else [value], key)
    raise BadRow(f"{key!r} is {type(value).__name__}, neither text nor a list of messages")


def _whole(before: _Turns | Drop | None, turns: _Turns, in_messages: bool) -> _Turns | Drop:
    """The whole conversation of a response's `turns`; `before` is the prompt, `in_messages` a list of messages."""
    if not turns or turns[0][0] != "assistant":  # the response has a prompt of its own
        # A prompt that is a text is not compared: it may be the conversation's last question alone.
        return turns if before is None or not in_messages else _completed(before, turns)
    if before is None:
        raise BadRow("there is no key 'prompt'")
    return before if isinstance(before, Drop) else [*before, *turns]


def _completed(before: _Turns | Drop, turns: _Turns) -> _Turns | Drop:
    """`turns` with what only the prompt has: a system message, or turns before the ones that both have."""
    if isinstance(before, Drop):
        return before
    asked = turns[:-1]
    if before in (asked[: len(before)], asked[-len(before) :]):
        return turns  # the whole prompt is there
    for start in range(1, len(before)):
        if before[start:] == asked[: len(before) - start]:
            return [*before[:start], *turns]
    return Drop.PROMPTS_DIFFER


def _read_messages(messages: list[object], key: str) -> _Turns | Drop:
    turns: _Turns = []
    for number, message in enumerate(messages):
        where = f"{key}[{number}]"
        if not isinstance(message, Mapping):
            remedy = f"if it is one of several texts, name it: --map {key}={key}.{number}"
            raise BadRow(f"{where} is {type(message).__name__}, not a message", remedy * isinstance(message, str))
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if message.get("tool_calls"):
            return Drop.TOOLS
        text = _join_parts(content, where) if isinstance(content, list) else content
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


def _join_parts(parts: list[object], where: str) -> str:
    """The text of message content that is a list of parts. Raises BadRow if a part is not text, such as an image."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadRow(f"{where} has a part of type {kind!r}; only text can be trained on")
        texts.append(text)
    return "".join(texts)


def _in_order(turns: _Turns) -> bool:
    roles = [role for role, _ in turns]
    return bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)
