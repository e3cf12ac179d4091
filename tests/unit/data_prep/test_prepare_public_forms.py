"""Rows as public sets and other trainers write them: each read into the right prompt, sides and rewards, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs.conversation import BadRow, Conversation, Drop
from data_prep.pairs.forms import BY_NAME, RowReader
from data_prep.prepare_data import main
from tests.unit.prepare_tools import Prepare, Refusal, many, record_of, rows_of, write


def user(text: str, *more: str) -> list[dict[str, str]]:
    """Messages, the user's first; `more` are the next turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate((text, *more))]


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shared(text: str, speaker: str = "human") -> dict[str, str]:
    return {"from": speaker, "value": text}


def read(row: dict[str, Any], **options: Any) -> list[Conversation | Drop]:
    return list(RowReader(**options).read(row))


#: (form, row): each says that the user asks "q" and "yes" is better than "no"
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"}),
    ("prompt", {"prompt": "q", "chosen": "yes", "rejected": "no", "id": 3}),
    ("prompt", {"prompt": user("q"), "chosen": "yes", "rejected": "no"}),
    ("messages", {"prompt": user("q"), "chosen": [assistant("yes")], "rejected": [assistant("no")]}),
    ("messages", {"chosen": user("q", "yes"), "rejected": user("q", "no")}),
    ("messages", {"prompt": user("q"), "chosen": user("q", "yes"), "rejected": user("q", "no")}),
    ("messages", {"question": "q", "prompt": "q", "chosen": user("q", "yes"), "rejected": user("q", "no")}),
    ("sharegpt", {"conversations": [shared("q")], "chosen": shared("yes", "gpt"), "rejected": shared("no", "gpt")}),
    ("chat", {"messages": user("q"), "chosen": assistant("yes"), "rejected": assistant("no")}),
    ("chat", {"messages": user("q", "yes"), "chosen": "yes", "rejected": "no"}),
    ("orca", {"system": "", "question": "q", "chosen": "yes", "rejected": "no"}),
    ("alpaca", {"instruction": "q", "input": "", "chosen": "yes", "rejected": "no"}),
    ("input", {"input": "q", "chosen": "yes", "rejected": "no"}),
    ("context", {"context": user("q"), "chosen": "yes", "rejected": "no"}),
    ("nemo_aligner", {"prompt": "q", "chosen_response": "yes", "rejected_response": "no"}),
    ("argilla", {"instruction": "q", "chosen_response": "yes", "rejected_response": "no"}),
    ("swift", {"messages": user("q", "yes"), "rejected_response": "no"}),
    ("swift_messages", {"messages": user("q", "yes"), "rejected_messages": user("q", "no")}),
    ("torchtune", {"chosen_conversations": user("q", "yes"), "rejected_conversations": user("q", "no")}),
    ("comparison", {"instruction": "q", "input": "", "output": ["yes", "no"]}),
    ("question_answers", {"question": "q", "answer": ["yes", "no"]}),
    (
        "openai",
        {
            "input": {"messages": user("q"), "tools": []},
            "preferred_output": [assistant("yes")],
            "non_preferred_output": [assistant("no")],
        },
    ),
    ("shp", {"history": "q", "human_ref_A": "yes", "human_ref_B": "no", "labels": 1, "score_A": 9, "score_B": 2}),
    ("shp", {"history": "q", "human_ref_A": "no", "human_ref_B": "yes", "labels": 0, "score_A": 2, "score_B": 9}),
    ("shp", {"history": "q", "human_ref_A": "yes", "human_ref_B": "no", "labels": "1"}),  # as CSV files have it
    ("input", {"input": "q", "chosen": "yes", "rejected": "no", "status": "swapped"}),
    ("helpsteer2", {"prompt": "q", "response_1": "yes", "response_2": "no", "preference_strength": -1}),
    ("helpsteer2", {"prompt": "q", "response_1": "no", "response_2": "yes", "preference_strength": 3}),
    ("helpsteer3", {"context": user("q"), "response1": "no", "response2": "yes", "overall_preference": 2}),
    ("stack_exchange", {"question": "q", "response_j": "yes", "response_k": "no"}),
    ("saferlhf", {"prompt": "q", "response_0": "no", "response_1": "yes", "better_response_id": 1}),
    ("saferlhf", {"prompt": "q", "response_0": "yes", "response_1": "no", "better_response_id": "0"}),
    ("step", {"prompt": "q", "initial_reason_steps": "", "chosen": "yes", "rejected": "no", "full_chosen": "yes so"}),
    ("arena", {"conversation_a": user("q", "no"), "conversation_b": user("q", "yes"), "winner": "model_b"}),
    (
        "nemo_rl",
        {
            "context": user("q"),
            "completions": [
                {"rank": 1, "completion": [assistant("no")]},
                {"rank": 0, "completion": [assistant("yes")]},
            ],
        },
    ),
    ("nectar", {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "no", "rank": 2.0},
                                                                    {"answer": "yes", "rank": 1.0}]}),
    ("implicit", {"chosen": "q yes", "rejected": "q no"}),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row"), ROWS, ids=[f"{form}-{n}" for n, (form, _) in enumerate(ROWS)])
def test_every_form_gives_the_pair_that_it_means(form: str, row: dict[str, Any]) -> None:
    reader = RowReader("implicit" if form == "implicit" else "auto")
    (found,) = reader.read(row)
    assert isinstance(found, Conversation)
    assert (found.turns, found.chosen, found.rejected) == (("q",), "yes", "no")
    assert (found.system, found.rewards) == ("", None)
    assert dict(reader.recognised) == {form: 1}
    (asked,) = RowReader(form).read(row)
    assert asked == found


def test_every_form_is_tried() -> None:
    assert {form for form, _ in ROWS} | {"ultrafeedback", "summaries"} == set(BY_NAME)


def test_forms_with_more_than_a_prompt() -> None:
    (alpaca,) = read({"instruction": "q", "input": "x", "history": [["a", "b"]], "chosen": "yes", "rejected": "no"})
    assert isinstance(alpaca, Conversation)
    assert alpaca.turns == ("a", "b", "q\nx")
    (orca,) = read({"system": "Be brief.", "question": "q", "chosen": "yes", "rejected": "no"})
    assert isinstance(orca, Conversation)
    assert orca.system == "Be brief."
    chat = [{"role": "developer", "content": "Be brief."}, *user("q", "a", "r")]
    (chat_row,) = read({"messages": chat, "chosen": assistant("yes"), "rejected": assistant("no")})
    assert isinstance(chat_row, Conversation)
    assert (chat_row.system, chat_row.turns) == ("Be brief.", ("q", "a", "r"))
    (steps,) = read({"prompt": "q", "initial_reason_steps": "First. ", "chosen": "Yes.", "rejected": "No."})
    assert isinstance(steps, Conversation)
    assert (steps.turns, steps.chosen, steps.rejected) == (("q",), "First. Yes.", "First. No.")
    summaries = [{"text": "no"}, {"text": "yes"}]
    (summary,) = read({"info": {"post": " A story. "}, "summaries": summaries, "choice": 1})
    assert isinstance(summary, Conversation)
    assert (summary.turns, summary.chosen, summary.rejected) == (("A story.\n\nTL;DR:",), "yes", "no")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 0}, Drop.TIE),
        ({"conversation_a": user("q", "a"), "conversation_b": user("q", "b"), "winner": "tie"}, Drop.TIE),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}, Drop.TIE),
        ({"input": "q", "chosen": "yes", "rejected": "no", "status": "tie"}, Drop.TIE),
        ({"tools": [{"type": "function"}], "prompt": "q", "chosen": "a", "rejected": "b"}, Drop.TOOLS),
        (
            {
                "prompt": user("q"),
                "chosen": [{"role": "assistant", "content": None, "tool_calls": [{}]}],
                "rejected": [assistant("b")],
            },
            Drop.TOOLS,
        ),
        ({"chosen": "q yes", "rejected": "q no"}, Drop.NO_PROMPT),
        ({"chosen_conversations": user("q", "a"), "rejected_conversations": user("r", "b")}, Drop.PROMPTS_DIFFER),
    ],
)
def test_rows_without_a_pair_are_dropped_by_reason(row: dict[str, Any], reason: Drop) -> None:
    assert read(row) == [reason]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": json.dumps(user("q", "yes")), "rejected": json.dumps(user("q", "no"))},
        {"prompt": "q", "chosen": str(user("q", "yes")), "rejected": str(user("q", "no"))},
        {"prompt": json.dumps([shared("q")]), "chosen": "yes", "rejected": "no"},
    ],
)
def test_messages_written_as_text_are_not_trained_on(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="a list of messages written as text"):
        read(row)


def test_a_text_may_quote_messages() -> None:
    (found,) = read({"prompt": "Show a chat in JSON.", "chosen": json.dumps(user("hi")), "rejected": "No."})
    assert isinstance(found, Conversation)
    assert found.chosen == json.dumps(user("hi"))


def test_a_label_that_is_no_number_is_no_tie() -> None:
    with pytest.raises(BadRow, match="not a number"):
        read({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": "first"})


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (("chosen_reward", "rejected_reward"), (8.0, 2.0), (8.0, 2.0)),
        (("score_chosen", "score_rejected"), (9, 3.5), (9.0, 3.5)),
        (("chosen_score", "rejected_score"), ("5.0", "1"), (5.0, 1.0)),
        (("rating_chosen", "rating_rejected"), (4, 4), (4.0, 4.0)),
        (("chosen-rating", "rejected-rating"), (4, 1), (4.0, 1.0)),
        (("chosen_reward", "rejected_reward"), (8.0, None), None),
        (("chosen_reward", "rejected_reward"), (float("nan"), 1.0), None),
        (("chosen_reward", "rejected_reward"), (True, False), None),
    ],
)
def test_rewards_are_kept(names: tuple[str, str], values: tuple[Any, Any], expected: Any) -> None:
    for sides in (("chosen", "rejected"), ("chosen_response", "rejected_response")):
        row = {"prompt": "q", **dict(zip(sides, ("yes", "no"), strict=True)), **dict(zip(names, values, strict=True))}
        (found,) = read(row)
        assert isinstance(found, Conversation)
        assert found.rewards == expected


def test_rewards_reach_the_files_and_the_record(prepare: Prepare, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {n}", "chosen_response": "yes", "rejected_response": "no", "chosen_reward": n}
        | ({"rejected_reward": -n} if n % 2 else {})
        for n in range(100)
    ]
    for sizes in (("--validation", "0.1", "--test", "0.1"), ("--validation", "8", "--test", "8")):
        folder = prepare(write(tmp_path / "pairs.jsonl", rows), *sizes)
        record, rewarded = record_of(folder), 0
        for split in ("train", "validation", "test"):
            for row in rows_of(folder, split):
                number = int(re.findall(r"question (\d+)", row["prompt"])[0])
                expected = (float(number), float(-number)) if number % 2 else (1.0, 0.0)
                assert (row["chosen_reward"], row["rejected_reward"]) == expected
                rewarded += number % 2
        assert sum(record["rewarded_rows"].values()) == rewarded == 50


def scored(number: int) -> dict[str, Any]:
    """A row of openai/webgpt_comparisons: either answer may be the better one, by its score."""
    better = {0: 1.0, 1: -0.5, 2: 0.0}[number % 3]
    question = {"dataset": "eli5", "id": str(number), "full_text": f"question {number}"}
    return {"question": question, "answer_0": "a", "answer_1": "b", "score_0": better, "score_1": -better}


SCORED = "prompt=question.full_text,chosen=answer_0,rejected=answer_1,chosen_reward=score_0,rejected_reward=score_1"


def test_the_chosen_response_may_be_the_one_with_the_higher_reward(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", [scored(number) for number in range(150)])
    folder = prepare(source, "--map", SCORED, "--chosen", "reward")
    rows = [row for split in ("train", "validation", "test") for row in rows_of(folder, split)]
    assert len(rows) == 100 and record_of(folder)["dropped"] == {"no response is preferred": 50}
    for row in rows:
        number = int(re.findall(r"question (\d+)", row["prompt"])[0])
        expected = (" a", " b", 1.0, -1.0) if number % 3 == 0 else (" b", " a", 0.5, -0.5)
        assert tuple(row[key] for key in list(row)[1:]) == expected


def test_rewards_that_contradict_the_choice_are_counted(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "pairs.jsonl", [scored(number) for number in range(150)])
    assert record_of(prepare(source, "--map", SCORED))["repaired"] == {
        "kept though the rejected response has the higher reward (see --chosen)": 50
    }
    assert "higher reward" in capsys.readouterr().out


def test_without_rewards_there_is_nothing_to_choose_by(refused: Refusal, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", [scored(number) for number in range(50)])
    plain = SCORED.rpartition(",chosen_reward")[0]
    assert "chosen_reward=KEY" in refused(source, "--map", plain, "--chosen", "reward")


# -- several rejected responses ----------------------------------------------------------------------------------------

RANKED = {
    "instruction": "q",
    "completions": [
        {"response": "middle", "overall_score": 5},
        {"response": "best", "overall_score": 9},
        {"response": "worst", "overall_score": 1.5},
        {"response": "as good", "overall_score": 9.0},
    ],
}


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("first", [("middle", (9.0, 5.0))]),
        ("worst", [("worst", (9.0, 1.5))]),
        ("all", [("middle", (9.0, 5.0)), ("worst", (9.0, 1.5))]),
    ],
)
def test_of_ranked_responses(which: str, expected: list[Any]) -> None:
    found = read(RANKED, rejected=which)
    assert [(one.rejected, one.rewards) for one in found if isinstance(one, Conversation)] == expected
    assert all(isinstance(one, Conversation) and one.chosen == "best" for one in found)


def test_lists_of_rejected_responses(prepare: Prepare, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "yes", "rejected": ["no", "never"]}
    assert [one.rejected for one in read(row) if isinstance(one, Conversation)] == ["no"]
    assert [one.rejected for one in read(row, rejected="all") if isinstance(one, Conversation)] == ["no", "never"]
    with pytest.raises(BadRow, match="no scores"):
        read(row, rejected="worst")
    rows = [{**row, "prompt": f"question {n}"} for n in range(60)] + many(40)
    record = record_of(prepare(write(tmp_path / "pairs.jsonl", rows), "--rejected", "all"))
    assert sum(record["rows"].values()) == 160
    assert record["several_rejected"] == {"rows": 60, "further_pairs": 60}


# -- rendered prompts --------------------------------------------------------------------------------------------------

RENDERED = {
    "llama2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq [/INST]", " yes </s>", " no </s>"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "yes<|eot_id|>",
        "no<|eot_id|>",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "yes<|im_end|>\n",
        "no<|im_end|>\n",
    ),
    "extra_id": (
        "<extra_id_0>System\n\n<extra_id_1>User\nq\n<extra_id_1>Assistant\n",
        "yes\n<extra_id_1>",
        "no\n<extra_id_1>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n",
        "yes<end_of_turn>",
        "no<end_of_turn>",
    ),
}


@pytest.mark.parametrize("style", RENDERED)
def test_rendered_prompts_are_refused_or_kept_as_they_are(style: str) -> None:
    prompt, yes, no = RENDERED[style]
    rows = [
        {"prompt": prompt, "chosen": yes, "rejected": no},
        {"prompt": prompt, "chosen_response": yes, "rejected_response": no},
        {"chosen": prompt + yes, "rejected": prompt + no},
    ]
    for row in rows:
        with pytest.raises(BadRow, match=f"already rendered.*{style}"):
            read(row)
        (found,) = read(row, keep_rendered=True)
        assert isinstance(found, Conversation)
        assert (found.text, found.chosen, found.rejected, found.rendered) == (prompt, yes, no, True)
        assert found.turns[0].endswith("q")
    for messages in ({"prompt": user(prompt), "chosen": yes, "rejected": no},):
        with pytest.raises(BadRow, match="already rendered"):
            read(messages)


def test_rendered_prompts_are_refused_whatever_the_tokenizer(refused: Refusal, tmp_path: Path) -> None:
    from tests.unit.prepare_tools import byte_level

    (tmp_path / "hf").mkdir()
    byte_level("llama3").save(str(tmp_path / "hf" / "tokenizer.json"))  # knows llama3's markers as tokens
    prompt, yes, no = RENDERED["llama3"]
    rows = [{"prompt": prompt.replace("q<", f"q{n}<"), "chosen": yes, "rejected": no} for n in range(50)]
    source = write(tmp_path / "pairs.jsonl", rows)
    for options in ((), ("--tokenizer", str(tmp_path / "hf"))):
        message = refused(source, *options)
        assert "none of the first 50 rows" in message
        assert "already rendered" in message
        assert "--rendered keep" in message
    assert (
        main([str(source), "--rendered", "keep", "--tokenizer", str(tmp_path / "hf"), "--out", str(tmp_path / "o")])
        == 0
    )
    assert {row["prompt"] for row in rows_of(tmp_path / "o", "train")} <= {row["prompt"] for row in rows}
    assert {row["chosen_response"] for row in rows_of(tmp_path / "o", "train")} == {yes}


@pytest.mark.parametrize(
    "text",
    ["What does <|im_start|> mean?", "Is [INST] a tag of llama2?", "Write <extra_id_0> three times.", "a < b | c > d"],
)
def test_a_marker_in_passing_is_text(text: str) -> None:
    (found,) = read({"prompt": text, "chosen": "yes", "rejected": "no"})
    assert isinstance(found, Conversation)
    assert found.turns == (text,)


# -- other names, parts, messages about files --------------------------------------------------------------------------


def test_keys_can_be_mapped(prepare: Prepare, tmp_path: Path, refused: Refusal) -> None:
    rows = [
        {
            "q": f"question {n}",
            "prompt": "not this",
            "answers": [{"text": "yes", "score": 4}, {"text": "no", "score": 1}],
        }
        for n in range(100)
    ]
    names = "prompt=q,chosen=answers.0.text,rejected=answers.1.text,"
    names += "chosen_reward=answers.0.score,rejected_reward=answers.1.score"
    source = write(tmp_path / "pairs.jsonl", rows)
    assert "there is no 'answer' in the row" in refused(source, "--map", "prompt=q,chosen=answer")
    assert "is not NAME=KEY" in refused(source, "--map", "question=q")
    (row, *_) = rows_of(prepare(source, "--map", names), "train")
    assert row["prompt"].startswith("\n\nHuman: question ")
    assert [row[key] for key in list(row)[1:]] == [" yes", " no", 4.0, 1.0]


def test_mapped_columns_of_a_table_are_read(prepare: Prepare, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"q": f"question {n}", "good": "yes", "bad": "no"} for n in range(100)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    folder = prepare(tmp_path / "pairs.parquet", "--map", "prompt=q,chosen=good,rejected=bad")
    assert record_of(folder)["rows_read"] == 100


def test_content_in_parts_is_joined_where_all_are_text() -> None:
    parts = [{"type": "text", "text": "q "}, {"type": "text", "text": "r"}]
    (found,) = read({"prompt": [{"role": "user", "content": parts}], "chosen": "yes", "rejected": "no"})
    assert isinstance(found, Conversation)
    assert found.turns == ("q r",)
    image = [*parts, {"type": "image_url", "image_url": "x"}]
    with pytest.raises(BadRow, match="a part of type 'image_url'"):
        read({"prompt": [{"role": "user", "content": image}], "chosen": "yes", "rejected": "no"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x", "winner": "a"}, ["the keys are text, winner", "--map"]),
        ({"prompt": "q", "response": "a", "label": True}, ["the keys are prompt, response, label", "--map"]),
        ({"prompt": "q", "completion": "a", "label": True}, ["no rejected response", "one response per row"]),
        ({"messages": user("q", "a")}, ["no rejected response", "one conversation per row"]),
    ],
)
def test_a_file_of_another_form_is_told_by_all_its_rows(
    refused: Refusal, tmp_path: Path, row: dict[str, Any], words: list[str]
) -> None:
    message = refused(write(tmp_path / "pairs.jsonl", [row] * 40))
    assert "none of the first 40 rows is a pair" in message
    assert "--skip-bad-lines" not in message
    assert all(word in message for word in words), message


def test_a_single_bad_line_is_told_by_its_place(refused: Refusal, tmp_path: Path) -> None:
    message = refused(write(tmp_path / "pairs.jsonl", [{"prompt": "q"}, *many(60)]))
    assert "pairs.jsonl:1: " in message
    assert "--skip-bad-lines" in message


def test_preview_prints_the_first_pair_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "pairs.jsonl", [{"instruction": "q", "chosen": "yes", "rejected": "no"}] * 3)
    assert main([str(source), "--preview", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "alpaca" in shown
    assert repr("\n\nHuman: q\n\nAssistant:") in shown
    assert not (tmp_path / "out").exists()
