"""The forms that sources write pairs in and the formats that prompts are written in, examples and noise."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.pairs import hh_format, prompt_formats, splits, tokenizer_files
from data_prep.pairs.conversation import BadRow, Conversation, Drop, Pair
from data_prep.pairs.forms import BY_NAME, RowReader
from data_prep.pairs.jsonl import Record
from data_prep.pairs.pair_filter import Options, PairFilter
from data_prep.pairs.pair_tokens import PairTokenizer
from tests.unit.prepare_tools import byte_level

#: As SmolLM2 and Qwen write their turns; the role of a tool is refused
CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORMATS = {
    "hh": prompt_formats.HH(),
    "llama3": prompt_formats.Llama3(),
    "chat": prompt_formats.Template(CHATML, {"bos_token": "<s>"}),
}
TURNS = {
    "llama3": re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>", re.DOTALL),
    "chat": re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL),
}


def reread(name: str, text: str) -> list[tuple[str, str]]:
    """(role, stripped text) of a conversation in one of FORMATS, read independently of what wrote it."""
    if name != "hh":
        return [(role, said.strip()) for role, said in TURNS[name].findall(text)]
    marks = [*hh_format.MARK.finditer(text)]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [(roles[m[1]], text[m.end() : end].strip()) for m, end in zip(marks, ends, strict=True)]
    before = text[: marks[0].start()].strip()
    return [("system", before), *said] if before else said


def messages(*said: str, system: str = "") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def auto(row: Mapping[str, Any]) -> Conversation | Drop:
    (found,) = RowReader().read(row)
    return found


def pair_of(row: Mapping[str, Any], name: str = "hh") -> Pair | Drop:
    conversation = auto(row)
    return conversation if isinstance(conversation, Drop) else FORMATS[name].render(conversation)


HH_ROW = {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: yes"}
HH_ROW["rejected"] = HH_ROW["chosen"].replace("yes", "no")
SAME = [
    HH_ROW,
    {"chosen": messages("q", "a", "r", "yes"), "rejected": messages("q", "a", "r", "no"), "prompt": "q", "score": 8},
    {"prompt": messages("q", "a", "r"), "chosen": messages("", "yes")[1:], "rejected": messages("", "no")[1:]},
    {"prompt": HH_ROW["chosen"].removesuffix(" yes"), "chosen": " yes", "rejected": "no"},
    {"prompt": "Human: q\n\nAssistant: a\n\nHuman: r", "chosen_response": "yes", "rejected_response": "no"},
    {"prompt": HH_ROW["chosen"].removesuffix(" yes"), **HH_ROW},
    {side: [{"from": m["role"], "value": m["content"]} for m in messages("q", "a", "r", last)]
     for side, last in (("chosen", "yes"), ("rejected", "no"))},
]  # fmt: skip


@pytest.mark.parametrize("row", SAME)
def test_all_forms_say_the_same(row: dict[str, Any]) -> None:
    assert pair_of(row) == Pair("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", " yes", " no", opening="q")
    chat = pair_of(row, "llama3")
    assert isinstance(chat, Pair)
    assert chat.prompt.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>")
    assert chat.prompt.endswith("r<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    assert (chat.chosen_response, chat.rejected_response) == ("yes<|eot_id|>", "no<|eot_id|>")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_keeps_rewards_and_opening(name: str) -> None:
    row = {"prompt": messages("q", "a", "r"), "chosen": messages("", "yes")[1:], "rejected": messages("", "no")[1:]}
    pair = pair_of({**row, "chosen_reward": 8, "rejected_reward": 2.5}, name)
    assert isinstance(pair, Pair)
    assert (pair.opening, pair.rewards) == ("q", (8.0, 2.5))
    assert (pair.row()["chosen_reward"], pair.row()["rejected_reward"]) == (8.0, 2.5)


@pytest.mark.parametrize("name", FORMATS)
def test_the_system_prompt_is_kept(name: str) -> None:
    rows = [
        {"chosen": messages("q", "yes", system="Be brief."), "rejected": messages("q", "no", system="Be brief.")},
        {"prompt": "q", "chosen": "yes", "rejected": "no", "system": "Be brief."},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: yes",
            "rejected": "\n\nHuman: q\n\nAssistant: no",
            "system": "Be brief.",
        },
    ]
    for row in rows:
        pair = pair_of(row, name)
        assert isinstance(pair, Pair)
        said = [("system", "Be brief."), ("user", "q")]
        assert reread(name, pair.prompt + pair.chosen_response) == [*said, ("assistant", "yes")]


FRENCH = "Answer in French."


@pytest.mark.parametrize(
    ("prompt", "before", "whole"),
    [
        (messages("q", system=FRENCH), messages("q"), messages("q", system=FRENCH)),
        (messages("q", "a", "r"), messages("r"), messages("q", "a", "r")),
        (messages("q", "a", "r", system=FRENCH), messages("r"), messages("q", "a", "r", system=FRENCH)),
        (messages("q", "a", "r"), messages("q", "a", "r"), messages("q", "a", "r")),
        (messages("q"), messages("q", "a", "r"), messages("q", "a", "r")),
        (messages("r"), messages("q", "a", "r"), messages("q", "a", "r")),
        (messages("q"), messages("q", system=FRENCH), messages("q", system=FRENCH)),
        ([], messages("q"), messages("q")),
        (messages("q", "yes"), messages("q"), messages("q")),  # the chosen response once more
        ("r", messages("q", "a", "r"), messages("q", "a", "r")),
        ("something else", messages("q"), messages("q")),  # a text is not compared
        (messages("other"), messages("q"), None),
        (messages("q", "b", "r"), messages("q", "a", "r"), None),
        (messages("q", system=FRENCH), messages("q", system="Be brief."), None),
        ([{"role": "tool", "content": "x"}, *messages("q")], messages("q"), Drop.ROLE),
    ],
)
def test_nothing_of_a_prompt_vanishes_where_responses_are_whole_conversations(
    prompt: Any, before: list[dict[str, str]], whole: Any
) -> None:
    sides = {side: [*before, *messages("", text)[1:]] for side, text in (("chosen", "yes"), ("rejected", "no"))}
    found = auto({"prompt": prompt, **sides})
    if not isinstance(whole, list):
        assert found is (whole or Drop.PROMPTS_DIFFER)
        return
    assert found == auto({"prompt": whole, "chosen": messages("", "yes")[1:], "rejected": messages("", "no")[1:]})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": messages("q", "a"), "rejected": messages("r", "b")}, Drop.PROMPTS_DIFFER),
        ({"chosen": messages("q", "a", system="x"), "rejected": messages("q", "b")}, Drop.PROMPTS_DIFFER),
        ({"chosen": messages("q", "a", "r"), "rejected": messages("q", "b", "r")}, Drop.TURN_ORDER),
        ({"chosen": [], "rejected": []}, Drop.TURN_ORDER),
        ({"chosen": messages("q", "a"), "rejected": [{"role": "tool", "content": "b"}]}, Drop.ROLE),
        ({"chosen": [*messages("q"), *messages("x", system="late")], "rejected": []}, Drop.TURN_ORDER),
        ({"chosen": messages("q", " "), "rejected": messages("q", "b")}, Drop.EMPTY_RESPONSE),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, Drop.EMPTY_TURN),
        ({"prompt": "q", "chosen": "a", "rejected": "a "}, Drop.EQUAL_RESPONSES),
        ({"prompt": "\n\nHuman: q\n\nHuman: r", "chosen": "a", "rejected": "b"}, Drop.TURN_ORDER),
        ({"prompt": "Who?\n\nHuman: I", "chosen": "a", "rejected": "b"}, Drop.MARKER),
        ({"prompt": "q", "chosen": "a\n\nHuman: more", "rejected": "b"}, Drop.MARKER),
    ],
)
def test_reasons_of_the_other_forms(row: dict[str, Any], reason: Drop) -> None:
    assert pair_of(row) is reason


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "no key 'chosen'"),
        ({"prompt": "q", "chosen": "a"}, "no key 'rejected'"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is int"),
        ({"chosen": messages("q", "a"), "rejected": "b"}, "'rejected' is str, not a list"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "system": 1}, "'system' is int"),
        ({"chosen": ["a"], "rejected": []}, "chosen[0] is str"),
        ({"chosen": [{"role": "user", "content": None}], "rejected": []}, "chosen[0] has no text under 'content'"),
        ({"chosen": [{"content": "x"}], "rejected": []}, "chosen[0] has no text under 'role'"),
        ({"chosen": messages("", "a")[1:], "rejected": []}, "no key 'prompt'"),
    ],
)
def test_rows_of_no_form_say_what_is_missing(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow, match=re.escape(why)):
        auto(row)


def test_templates_that_lose_or_refuse_a_text_are_noticed() -> None:
    conversation = Conversation(("q", "a", "r"), "yes", "no", "Be brief.")
    last_only = "{{ messages[-1].content }}"
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    shouting = CHATML.replace("m['content']", "m['content'] | upper")
    for template in (last_only, no_system, shouting, "{{ messages[9].content }}", "{{ 1 / 0 }}"):
        assert prompt_formats.Template(template, {}).render(conversation) is Drop.TEMPLATE


# -- noise -------------------------------------------------------------------------------------------------------------

PIECES = [
    "\n\nHuman:",
    "\n\nAssistant: ",
    "Human:",
    "<|im_end|>\n",
    "<|eot_id|>",
    "<|im_start|>user\n",
    "<s>",
    "hi",
    " ",
]
PIECES += ["\n\n", "\n", "🙂", "e\u0301", "\u2028", "\x07", "\ud800", "x" * 100_000, "I can't", "{{ x }}", "\u3000"]
said = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=4).map("".join)
nothing = st.none() | st.integers() | st.booleans()
roles = st.sampled_from(["user", "assistant", "system", "Human", "gpt", "tool", "", "USER "]) | nothing
message = st.fixed_dictionaries({}, optional={"role": roles, "content": said | nothing, "from": roles}) | nothing


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Any, Any]:
    """Two whole conversations, mostly sound, in HH's form or as messages."""
    turns = draw(st.lists(said.filter(bool), min_size=1, max_size=5))
    sides = [[*turns, draw(said)] for _ in range(2)]
    if draw(st.booleans()):
        system = draw(st.sampled_from(["", "Be kind."]))
        first, second = (messages(*side, system=system) for side in sides)
        return first, second
    first, second = ("".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {t}" for n, t in enumerate(s)) for s in sides)
    return first, second


sound = conversations().map(lambda sides: {"chosen": sides[0], "rejected": sides[1]})
asked = st.builds(lambda p, c, r: {"prompt": p, "chosen": c, "rejected": r}, said, said, said)
value = said | nothing | st.lists(message, max_size=4)
odd = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "system", "chosen_response"]), value, max_size=5)
rows = sound | sound | asked | odd


def expected(row: dict[str, Any], side: str) -> list[tuple[str, str]]:
    """What the row says, read in the plainest way: roles and stripped texts."""
    system = [("system", row["system"].strip())] if row.get("system") else []
    system = [turn for turn in system if turn[1]]
    given = row[side] if side in row else row[f"{side}_response"]
    whole = str(row.get("chosen")).lstrip()
    if isinstance(given, str) and (
        row.get("prompt") is None or (whole.startswith("Human:") and "\n\nAssistant:" in whole)
    ):
        return system + reread("hh", "\n\n" + given.lstrip())
    if isinstance(given, str):
        question = "\n\n" + row["prompt"].lstrip()
        turns = reread("hh", question.removesuffix(" ")) if question.startswith("\n\nHuman:") else []
        turns = [turn for turn in turns if turn != ("assistant", "")] or [("user", question.strip())]
        return [*system, *turns, ("assistant", given.strip())]
    names = {"human": "user", "gpt": "assistant"}
    read = [(m.get("role", m.get("from")).strip().lower(), m["content"].strip()) for m in given]
    if read[0][0] in ("assistant", "gpt"):
        before = row["prompt"]
        if isinstance(before, str):
            return expected({**row, side: read[0][1]}, side)
        read = [(m.get("role", m.get("from")).strip().lower(), m["content"].strip()) for m in before] + read
    elif isinstance(row.get("prompt"), list):
        before = [(m.get("role", m.get("from")).strip().lower(), m["content"].strip()) for m in row["prompt"]]
        begun = [before[:count] + read for count in range(len(before) + 1)]
        read = next(turns for turns in begun if before in (turns[: len(before)], turns[-1 - len(before) : -1]))
    read = [(names.get(role, role), text) for role, text in read if (role, text) != ("system", "")]
    return read if read[0][0] == "system" else system + read


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_is_a_pair_that_reads_back_or_has_a_reason(name: str) -> None:
    @settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(row=rows)
    def check(row: dict[str, Any]) -> None:
        try:
            pair = pair_of(row, name)
        except BadRow:
            return
        if isinstance(pair, Drop):
            return
        special = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|start_header_id|>")
        if name == "chat" and any(token in json.dumps(row, ensure_ascii=True) for token in special):
            return  # what PairTokenizer.has_special sees to, which knows the tokens
        assert reread(name, pair.prompt + pair.chosen_response) == expected(row, "chosen")
        assert reread(name, pair.prompt + pair.rejected_response) == expected(row, "rejected")

    check()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PairTokenizer:
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    byte_level("llama3").save(str(path))
    made = PairTokenizer(tokenizer_files.read(path))
    made.load()
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    batch=st.lists(rows, max_size=8), name=st.sampled_from(sorted(FORMATS)), too_long=st.sampled_from(["drop", "cut"])
)
def test_any_rows_are_written_or_counted(
    tokenizer: PairTokenizer, batch: list[dict[str, Any]], name: str, too_long: str
) -> None:
    options = Options("auto", splits.Sizes(0.1, 0.1), max_tokens=60, too_long=too_long, skip_bad_lines=True)
    with tempfile.TemporaryDirectory() as folder:
        pair_filter = PairFilter(options, FORMATS[name], tokenizer, Path(folder))
        kept = list(pair_filter.kept(Record(str(number), row) for number, row in enumerate(batch)))
        pair_filter.close()
        assert not list(Path(folder).iterdir())
    assert pair_filter.read == len(batch) == len(kept) + sum(pair_filter.dropped.values())
    for pair, length in kept:
        start, *sides = tokenizer.encode(
            [pair.prompt, pair.prompt + pair.chosen_response, pair.prompt + pair.rejected_response]
        )
        assert all(side[:-1][: len(start)] == start for side in sides)
        assert length == max(map(len, sides)) <= 60


def test_forms_can_be_asked_for() -> None:
    (found,) = RowReader("hh").read(HH_ROW)
    assert isinstance(found, Conversation)
    with pytest.raises(BadRow, match="no key 'prompt'"):
        list(RowReader("prompt").read(HH_ROW))
    with pytest.raises(BadRow, match="'chosen' is str, not a list of messages"):
        list(RowReader("messages").read(HH_ROW))
    assert {"hh", "prompt", "messages"} <= set(BY_NAME)
