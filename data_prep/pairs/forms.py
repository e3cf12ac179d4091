"""The forms that rows of sources have. A form is one entry of FORMS: the keys it needs, and how to read them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_prep.pairs import form_readers as read
from data_prep.pairs.conversation import BadRow, Conversation, Drop
from data_prep.pairs.form_readers import REWARDS, Row, number
from data_prep.pairs.preference import conversations, is_conversation


@dataclass(frozen=True)
class Form:
    """A row has the form if all keys of `needs` have a value and it `fits`; `read` turns it into a Preference."""

    name: str
    needs: tuple[str, ...]
    read: read.Read
    fits: Callable[[Row], bool] = lambda row: True
    optional: tuple[str, ...] = ()


_ALPACA = ("input", "history")
#: In the order in which they are tried.
FORMS = (
    Form(
        "messages",
        ("chosen", "rejected"),
        read.messages,
        lambda row: isinstance(row["chosen"], list),
        ("prompt", "conversations", "messages", "context"),
    ),
    Form("hh", ("chosen", "rejected"), read.whole_texts, lambda row: is_conversation(row["chosen"])),
    Form("step", ("prompt", "initial_reason_steps", "chosen", "rejected"), read.step),
    Form("sharegpt", ("conversations", "chosen", "rejected"), read.columns("conversations")),
    Form("prompt", ("prompt", "chosen", "rejected"), read.columns("prompt")),
    Form("chat", ("messages", "chosen", "rejected"), read.columns("messages")),
    Form("orca", ("question", "chosen", "rejected"), read.columns("question")),
    Form(
        "alpaca",
        ("instruction", "chosen", "rejected"),
        read.columns(read.alpaca_prompt),
        optional=_ALPACA,
    ),
    Form("input", ("input", "chosen", "rejected"), read.columns("input")),
    Form("context", ("context", "chosen", "rejected"), read.columns("context")),
    Form(
        "nemo_aligner",
        ("prompt", "chosen_response", "rejected_response"),
        read.columns("prompt", "chosen_response", "rejected_response"),
    ),
    Form(
        "argilla",
        ("instruction", "chosen_response", "rejected_response"),
        read.columns(read.alpaca_prompt, "chosen_response", "rejected_response"),
        optional=_ALPACA,
    ),
    Form("swift", ("messages", "rejected_response"), read.swift),
    Form("swift_messages", ("messages", "rejected_messages"), read.columns(None, "messages", "rejected_messages")),
    Form(
        "torchtune",
        ("chosen_conversations", "rejected_conversations"),
        read.columns(None, "chosen_conversations", "rejected_conversations"),
    ),
    Form(
        "comparison",
        ("instruction", "output"),
        read.answers_in_a_list("output", read.alpaca_prompt),
        lambda row: isinstance(row["output"], list),
        _ALPACA,
    ),
    Form(
        "question_answers",
        ("question", "answer"),
        read.answers_in_a_list("answer", lambda row: row["question"]),
        lambda row: isinstance(row["answer"], list),
    ),
    Form("openai", ("input", "preferred_output", "non_preferred_output"), read.openai),
    Form(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        read.two_responses("history", "human_ref_A", "human_ref_B", read.label("labels", {1.0: -1, 0.0: 1})),
    ),
    Form(
        "helpsteer2",
        ("prompt", "response_1", "response_2", "preference_strength"),
        read.two_responses("prompt", "response_1", "response_2", lambda row: number(row["preference_strength"])),
    ),
    Form(
        "helpsteer3",
        ("context", "response1", "response2", "overall_preference"),
        read.two_responses("context", "response1", "response2", lambda row: number(row["overall_preference"])),
    ),
    Form(
        "stack_exchange", ("question", "response_j", "response_k"), read.columns("question", "response_j", "response_k")
    ),
    Form(
        "saferlhf",
        ("prompt", "response_0", "response_1", "better_response_id"),
        read.two_responses("prompt", "response_0", "response_1", read.label("better_response_id", {0.0: -1, 1.0: 1})),
    ),
    Form("arena", ("conversation_a", "conversation_b", "winner"), read.arena),
    Form("nemo_rl", ("context", "completions"), read.nemo_rl),
    Form("ultrafeedback", ("instruction", "completions"), read.ultrafeedback),
    Form("nectar", ("prompt", "answers"), read.nectar),
    Form("summaries", ("info", "summaries", "choice"), read.summaries),
    Form("implicit", ("chosen", "rejected"), read.implicit),
)


BY_NAME = {form.name: form for form in FORMS}
#: Names that --map can map to other keys. Without a prompt key, the responses must contain the prompt.
TARGETS = ("prompt", "chosen", "rejected", "system", "chosen_reward", "rejected_reward")
_NOT_MAPPED = frozenset((*TARGETS, *(key for pair in REWARDS for key in pair)))
#: All keys that any form reads: only these columns of a table are read.
KEYS = frozenset(
    [key for form in FORMS for key in (*form.needs, *form.optional)]
    + [key for pair in REWARDS for key in pair]
    + ["system", "system_prompt", "tools", "status"]
)


@functools.lru_cache(maxsize=1024)
def _candidates(keys: tuple[str, ...]) -> tuple[Form, ...]:
    """The forms whose keys are all present, except "implicit", which is used only on request."""
    return tuple(form for form in FORMS[:-1] if all(key in keys for key in form.needs))


def recognise(row: Row) -> Form:
    """The form of a row. Raises UnknownForm, a BadRow, if no form matches."""
    keys = tuple(row)
    if None in row.values():
        keys = tuple(key for key in keys if row[key] is not None)
    for form in _candidates(keys):
        if form.fits(row):
            return form
    if "chosen" in keys and "rejected" in keys:
        return BY_NAME["hh"]
    raise UnknownForm(_what_is_missing(keys), _remedy(keys))


#: Keys of data sets that do not hold pairs, and what they hold instead.
_NO_PAIRS = (
    (("completion", "label"), "one response per row with a label (KTO's form)"),
    (("messages",), "one conversation per row (a set for supervised tuning)"),
    (("prompt", "completion"), "one response per row (a set for supervised tuning)"),
    (("instruction", "output"), "one response per row (a set for supervised tuning)"),
)


def _what_is_missing(keys: tuple[str, ...]) -> str:
    """Names the missing key of the most similar form."""
    held = next((what for some, what in _NO_PAIRS if all(key in keys for key in some)), None)
    if held and "rejected" not in keys:
        return f"there is no rejected response, but {held}"
    nearest = max(FORMS[1:], key=lambda form: sum(key in keys for key in form.needs))
    wanted = sorted(nearest.needs, key=lambda key: key not in ("chosen", "rejected"))
    missing = next((key for key in wanted if key not in keys), "chosen")
    return f"there is no key {missing!r}"


def _remedy(keys: tuple[str, ...]) -> str:
    """What to do if no known form matches: use --map. Lists the most similar forms."""
    shared = {form: sum(key in keys for key in form.needs) for form in FORMS[1:-1]}
    near = sorted(
        (form for form in shared if shared[form]), key=lambda form: (-shared[form], abs(len(form.needs) - 3))
    )[:3]
    known = "; ".join(f"{form.name} has {', '.join(form.needs)}" for form in near)
    remedy = "name the columns with --map prompt=KEY,chosen=KEY,rejected=KEY"
    return f"{remedy} (of the known forms, {known})" if near else f"{remedy}; --help lists the known forms"


class UnknownForm(BadRow):
    """The keys of a row match no form."""


class RowReader:
    """Reads rows of one form, or recognises each row's form; `mapping` is {one of TARGETS: path of keys with dots}.

    `recognised` counts rows by form; `several` counts rows with several rejected responses.
    """

    def __init__(
        self,
        form: str = "auto",
        mapping: Mapping[str, str] | None = None,
        rejected: str = "first",
        keep_rendered: bool = False,
        by_reward: bool = False,
    ) -> None:
        self.recognised: Counter[str] = Counter()
        self.several = 0
        self._form = None if form == "auto" else BY_NAME[form]
        self._mapping = {target: path.split(".") for target, path in (mapping or {}).items()}
        self._rejected, self._keep_rendered, self._by_reward = rejected, keep_rendered, by_reward

    def read(self, row: Row) -> list[Conversation | Drop]:
        """The row's Conversations (or reasons to drop them), one per selected rejected response. Raises BadRow."""
        if "tools" in row and row["tools"] not in (None, "", "[]", []):
            return [Drop.TOOLS]
        if row.get("status") == "tie":  # distilabel's judge preferred neither
            return [Drop.TIE]
        if self._mapping:
            kept = {key: value for key, value in row.items() if key in _NOT_MAPPED}
            row = {**kept, **{target: _at(row, path) for target, path in self._mapping.items()}}
        form = self._form or recognise(row)
        preference = form.read(row)
        self.recognised[form.name] += 1
        if isinstance(preference, Drop):
            return [preference]
        self.several += len(preference.rejected) > 1
        return conversations(preference, self._rejected, self._keep_rendered, self._by_reward)


def _at(row: Row, path: list[str]) -> object:
    """The value at a path of keys and list indices. Raises BadRow if it does not exist."""
    value: object = row
    for at, key in enumerate(path):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            raise BadRow(f"there is no {key!r} in {'.'.join(path[:at]) or 'the row'}, which --map names")
    return value
