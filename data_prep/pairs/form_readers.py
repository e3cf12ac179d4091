"""Readers for the known forms of rows: each function turns a row into a Preference, or raises BadRow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from os.path import commonprefix
from typing import Any

from data_prep.pairs.conversation import BadRow, Drop
from data_prep.pairs.preference import Preference

Row = Mapping[str, Any]
Read = Callable[[Row], Preference | Drop]


def columns(prompt: str | Callable[[Row], object] | None, chosen: str = "chosen", rejected: str = "rejected") -> Read:
    """A reader for forms with one column per response. `prompt` is a column, or a function that makes the prompt."""

    def read(row: Row) -> Preference:
        given = prompt(row) if callable(prompt) else None if prompt is None else _given(row, prompt)
        return make_preference(given, _given(row, chosen), row, rejected)

    return read


def make_preference(prompt: object, chosen: object, row: Row, rejected: str = "rejected") -> Preference:
    value = _given(row, rejected)
    several = isinstance(value, list) and value and all(isinstance(answer, (str, list)) for answer in value)
    answers = tuple(value) if several else (value,)
    return Preference(prompt, chosen, answers, _system(row), *(_rewards(row) if len(answers) == 1 else ()))


def _given(row: Row, key: str) -> Any:
    value = row.get(key)
    if value is None:
        raise BadRow(f"{key!r} is null" if key in row else f"there is no key {key!r}")
    return value


def _system(row: Row) -> object:
    return row.get("system") or row.get("system_prompt") or None


# -- rewards -----------------------------------------------------------------------------------------------------------

#: Columns with a score for each response. Votes and ranks are not rewards: a loss whose target is the difference of
#: rewards needs the same scale in all rows.
REWARDS = (
    ("chosen_reward", "rejected_reward"),
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


_REWARD_KEYS = frozenset(key for pair in REWARDS for key in pair)


def _rewards(row: Row) -> tuple[()] | tuple[float, tuple[float]]:
    if _REWARD_KEYS.isdisjoint(row):
        return ()
    for chosen, rejected in REWARDS:
        if chosen in row and rejected in row:
            first, second = number(row[chosen]), number(row[rejected])
            if first is not None and second is not None:
                return first, (second,)
    return ()


def number(value: object) -> float | None:
    """The value as a finite float (CSV files hold numbers as text); None for anything else."""
    try:
        parsed = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None


# -- forms that are more than columns ----------------------------------------------------------------------------------


def messages(row: Row) -> Preference:
    """Responses are messages: whole conversations, or answers to a prompt that has one of several names."""
    for key in ("chosen", "rejected"):
        if not isinstance(_given(row, key), (list, Mapping)):
            raise BadRow(f"{key!r} is {type(row[key]).__name__}, not a list of messages")
    names = ("prompt", "conversations", "messages", "context", "question", "instruction")
    prompt = next((row[name] for name in names if row.get(name) is not None), None)
    return make_preference(prompt, row["chosen"], row)


def whole_texts(row: Row) -> Preference:
    for key in ("chosen", "rejected"):
        if not isinstance(_given(row, key), str):
            raise BadRow(f"{key!r} is {type(row[key]).__name__}, not text (HH pairs have 'chosen' and 'rejected')")
    return make_preference(None, row["chosen"], row)


def implicit(row: Row) -> Preference | Drop:
    """Two texts with no separate prompt: their common beginning, up to its last whitespace, is taken as the prompt, as
    TRL's extract_prompt does. Only on request: if responses begin alike, that part moves into the prompt."""
    chosen, rejected = _given(row, "chosen"), _given(row, "rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise BadRow("'chosen' and 'rejected' are not both text")
    shared = commonprefix([chosen, rejected])
    prompt = shared[: max(map(shared.rfind, " \n\t")) + 1]
    if not prompt.strip():
        return Drop.NO_PROMPT
    return Preference(prompt, chosen[len(prompt) :], (rejected[len(prompt) :],), _system(row), *_rewards(row))


def step(row: Row) -> Preference:
    """Step-DPO: both responses go on from the same first steps, which are part of what is answered."""
    begun, chosen, rejected = (_given(row, key) for key in ("initial_reason_steps", "chosen", "rejected"))
    if not all(isinstance(text, str) for text in (begun, chosen, rejected)):
        raise BadRow("'initial_reason_steps', 'chosen' and 'rejected' are not all text")
    return Preference(_given(row, "prompt"), begun + chosen, (begun + rejected,))


def alpaca_prompt(row: Row) -> object:
    """Joins instruction and input with a line end, as LLaMA-Factory does, and puts its `history` before them."""
    instruction, given, history = _given(row, "instruction"), row.get("input") or "", row.get("history") or []
    if not isinstance(instruction, str) or not isinstance(given, str):
        raise BadRow("'instruction' and 'input' are not both text")
    question = f"{instruction}\n{given}" if given.strip() else instruction
    if not history:
        return question
    if not isinstance(history, list) or not all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in history):
        raise BadRow("'history' is not a list of pairs of question and answer")
    texts = [text for turn in history for text in turn] + [question]
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def answers_in_a_list(key: str, prompt: Callable[[Row], object]) -> Read:
    """LLaMA-Factory's first form: a list whose first answer is the chosen one; the others are rejected."""

    def read(row: Row) -> Preference:
        answers = _given(row, key)
        if not isinstance(answers, list) or len(answers) < 2:
            raise BadRow(f"{key!r} is not a list of the chosen and the rejected answer")
        return Preference(prompt(row), answers[0], tuple(answers[1:]), _system(row))

    return read


def two_responses(prompt: str, first: str, second: str, preferred: Callable[[Row], float | None]) -> Read:
    """Two responses and a number that is above 0 where the second is preferred, below 0 where the first is."""

    def read(row: Row) -> Preference | Drop:
        answers = (_given(row, first), _given(row, second))
        sign = preferred(row)
        if sign is None:
            raise BadRow("the preference is not a number")
        if not sign:
            return Drop.TIE
        return Preference(_given(row, prompt), answers[sign > 0], (answers[sign < 0],), _system(row))

    return read


def label(key: str, values: Mapping[float, int]) -> Callable[[Row], float | None]:
    """A function that maps the number under `key` (text in CSV files) to -1 or 1, and unlisted numbers to 0, a tie."""

    def read(row: Row) -> float | None:
        value = number(row[key])
        return None if value is None else values.get(value, 0)

    return read


def _ranked(prompt: object, answers: Iterable[tuple[object, object]], row: Row, rewards: bool) -> Preference | Drop:
    """`answers` are (response, score); the highest score is best. Responses tied with the best are left out."""
    scored = [(response, number(score)) for response, score in answers]
    known = sorted(((score, response) for response, score in scored if score is not None), key=lambda it: -it[0])
    if len(known) < len(scored):
        raise BadRow("a response has no score or rank")
    worse = [(score, response) for score, response in known if score < known[0][0]]
    if not worse:
        return Drop.TIE
    preference = Preference(
        prompt, known[0][1], tuple(response for _, response in worse), _system(row), best_first=True
    )
    if not rewards:
        return preference
    return preference._replace(chosen_reward=known[0][0], rejected_rewards=tuple(score for score, _ in worse))


def _items(row: Row, key: str) -> list[Mapping[str, object]]:
    items = _given(row, key)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise BadRow(f"{key!r} is not a list of objects")
    return items


def _negated(value: object) -> float | None:
    rank = number(value)
    return None if rank is None else -rank


def nemo_rl(row: Row) -> Preference | Drop:
    answers = [(item.get("completion"), _negated(item.get("rank"))) for item in _items(row, "completions")]
    return _ranked(_given(row, "context"), answers, row, rewards=False)


def nectar(row: Row) -> Preference | Drop:
    answers = [(item.get("answer"), _negated(item.get("rank"))) for item in _items(row, "answers")]
    return _ranked(_given(row, "prompt"), answers, row, rewards=False)


def ultrafeedback(row: Row) -> Preference | Drop:
    answers = [(item.get("response"), item.get("overall_score")) for item in _items(row, "completions")]
    return _ranked(_given(row, "instruction"), answers, row, rewards=True)


def summaries(row: Row) -> Preference | Drop:
    """OpenAI's comparisons of summaries of a post."""
    texts, choice = [item.get("text") for item in _items(row, "summaries")], number(_given(row, "choice"))
    info = _given(row, "info")
    post = info.get("post") or info.get("article") if isinstance(info, Mapping) else None
    if len(texts) != 2 or choice not in (0, 1) or not isinstance(post, str):
        raise BadRow("'summaries', 'choice' and 'info' are not those of a comparison of two summaries")
    return Preference(f"{post.strip()}\n\nTL;DR:", texts[int(choice)], (texts[1 - int(choice)],))


def openai(row: Row) -> Preference | Drop:
    given = _given(row, "input")
    if not isinstance(given, Mapping):
        raise BadRow("'input' is not an object with 'messages'")
    if given.get("tools"):
        return Drop.TOOLS
    return Preference(_given(given, "messages"), row["preferred_output"], (row["non_preferred_output"],))


def swift(row: Row) -> Preference:
    """ms-swift: the messages end with the chosen response."""
    messages = _given(row, "messages")
    if not isinstance(messages, list) or not messages:
        raise BadRow("'messages' is not a list of messages")
    return make_preference(messages[:-1], messages[-1], row, "rejected_response")


def arena(row: Row) -> Preference | Drop:
    sides = (row["conversation_a"], row["conversation_b"])
    winner = {"model_a": 0, "model_b": 1}.get(row["winner"])
    return Drop.TIE if winner is None else Preference(None, sides[winner], (sides[1 - winner],))
