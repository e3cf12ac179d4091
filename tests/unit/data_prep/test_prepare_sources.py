"""Where pairs may lie: Parquet, save_to_disk, sets of the hub; and their tokenizers: SentencePiece, chat templates."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs import hub, sources, splits
from data_prep.pairs.hash_set import HashSet
from tests.unit.prepare_tools import (
    ROOT,
    Prepare,
    Refusal,
    byte_level,
    characters_as_tokens,
    hh,
    many,
    prompts,
    record_of,
    rows_of,
    write,
)  # fmt: skip


def ultrafeedback(number: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows with the columns of HuggingFaceH4/ultrafeedback_binarized."""

    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    return [
        {"prompt": f"q{n}", "prompt_id": str(n), "chosen": said(f"q{n}", "yes"), "rejected": said(f"q{n}", "no"),
         "messages": said(f"q{n}", "yes"), "score_chosen": 8.5, "score_rejected": 2.0}
        for n in range(start, start + number)
    ]  # fmt: skip


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=100)
    return path


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("pandas", [False, True])
def test_an_object_of_columns_is_rows(prepare: Prepare, tmp_path: Path, pandas: bool, indent: int | None) -> None:
    columns: dict[str, Any] = {"prompt": [f"q{n}" for n in range(60)], "chosen": ["yes"] * 60, "rejected": ["no"] * 60}
    if pandas:
        columns = {key: {str(n): value for n, value in enumerate(values)} for key, values in columns.items()}
    (tmp_path / "columns.json").write_text(json.dumps(columns, indent=indent))
    rows = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(60)]
    same = prepare(write(tmp_path / "rows.jsonl", rows), out="rows")
    assert rows_of(prepare(tmp_path / "columns.json", out="columns"), "train") == rows_of(same, "train")


def test_parquet_gives_the_same_files_as_jsonl(prepare: Prepare, tmp_path: Path) -> None:
    rows = ultrafeedback(700)
    one = prepare(parquet(tmp_path / "a" / "pairs.parquet", rows), out="one")
    two = prepare(write(tmp_path / "b" / "pairs.jsonl", rows), out="two")
    assert (one / "train.jsonl").read_bytes() == (two / "train.jsonl").read_bytes()
    assert record_of(one)["rows_read"] == 700


def test_a_copy_of_a_hub_set_in_parquet(prepare: Prepare, refused: Refusal, tmp_path: Path) -> None:
    data = tmp_path / "ultra" / "data"
    for number, name in enumerate(
        ("train_prefs-00000-of-00002", "train_prefs-00001-of-00002", "test_prefs", "train_sft")
    ):
        parquet(data / f"{name}.parquet", ultrafeedback(50, 50 * number))
    (tmp_path / "ultra" / "README.md").write_text("not data")
    record = record_of(prepare(tmp_path / "ultra", "--splits", "train_prefs,test_prefs", out="prefs"))
    assert (record["rows_read"], record["rows"]["train"]) == (150, 100)
    assert record_of(prepare(tmp_path / "ultra", out="all"))["rows"]["train"] == 150
    said = refused(tmp_path / "ultra", "--splits", "train_pref")
    assert "--splits=train_pref: no such split" in said
    assert "test_prefs, train_prefs, train_sft" in said


def test_damaged_parquet_is_refused(refused: Refusal, tmp_path: Path) -> None:
    path = parquet(tmp_path / "pairs.parquet", ultrafeedback(300))
    path.write_bytes(path.read_bytes()[:-50])
    assert "is not a Parquet" in refused(path)


def test_parquet_without_the_columns_says_which(refused: Refusal, tmp_path: Path) -> None:
    path = parquet(tmp_path / "pairs.parquet", [{"question": "q", "response": "a"}])
    message = refused(path)
    assert "pairs.parquet: " in message
    assert "there is no key" in message
    assert "the keys are question, response" in message
    assert "--map" in message


def test_sets_written_with_save_to_disk(prepare: Prepare, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ultrafeedback(100))
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, test=datasets.Dataset.from_list(ultrafeedback(60, 90))).save_to_disk(
        str(tmp_path / "two")
    )
    assert record_of(prepare(tmp_path / "one", out="of one"))["rows_read"] == 100
    folder = prepare(tmp_path / "two", out="of two")
    record = record_of(folder)
    assert (record["rows"]["train"], record["dropped"]) == (100, {"prompt is in another split": 10})
    before = (folder / "dataset.json").stat().st_mtime_ns
    assert (prepare(tmp_path / "two", out="of two") / "dataset.json").stat().st_mtime_ns == before


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The datasets library's two entries answer with real datasets, and note what they were asked."""
    datasets = pytest.importorskip("datasets")
    asked: list[dict[str, Any]] = []
    held = {"train_prefs": ultrafeedback(90), "test_prefs": ultrafeedback(40, 80), "train_gen": ultrafeedback(10, 500)}

    def load(path: str, **options: Any) -> Any:
        asked.append({"of": path, **options})
        return datasets.Dataset.from_list(held[options["split"]])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *words, **options: list(held))
    yield asked


def test_a_set_of_the_hub(
    prepare: Prepare, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    words = ("owner/ultra", "--splits", "train_prefs,test_prefs", "--revision", commit)
    record = record_of(prepare(*words))
    assert record["rows"]["train"] == 90
    assert record["dropped"] == {"prompt is in another split": 10}
    assert record["source"] == {
        "name": "owner/ultra", "revision": commit, "subsets": [], "splits": ["train_prefs", "test_prefs"],
    }  # fmt: skip
    assert [one["split"] for one in served] == ["train_prefs", "test_prefs"]
    assert {(one["of"], one["revision"], one["name"]) for one in served} == {("owner/ultra", commit, None)}
    prepare(*words)
    assert "up to date" in capsys.readouterr().out
    assert len(served) == 2


def test_a_branch_of_the_hub_is_made_anew_unless_it_can_be_told_what_it_is(
    prepare: Prepare, served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "resolve", lambda name, revision: revision)
    for _ in range(2):
        assert record_of(prepare("owner/ultra"))["source"]["revision"] == "main"
    assert len(served) == 6
    commit = "f" * 40
    monkeypatch.setattr(hub, "resolve", lambda name, revision: commit)
    for _ in range(2):
        assert record_of(prepare("owner/ultra"))["source"]["revision"] == commit
    assert len(served) == 9


def test_hub_without_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    words = [sys.executable, str(ROOT / "data_prep" / "prepare_data.py"), "owner/nothing-of-this-name"]
    run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert "give a folder with train.jsonl or train.parquet" in run.stderr.splitlines()[-1]


def test_names_of_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.is_name("HuggingFaceH4/ultrafeedback_binarized")
    assert not any(map(hub.is_name, ("pairs", "./pairs", "../a/b", "/a/b", "a/b/c", "~/x")))
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="no such file, folder or known set"):
        sources.find("owner/set")


# -- tokenizers and templates ------------------------------------------------------------------------------------------


def test_sentencepiece_counts_as_nemo_does(prepare: Prepare, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    rows = many(60)
    lines = [line for row in rows for line in row["chosen"].split("\n") if line] * 5
    (tmp_path / "llama2").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "llama2" / "tokenizer"), vocab_size=60,
        hard_vocab_limit=False, byte_fallback=False, minloglevel=2,
    )  # fmt: skip
    folder = prepare(write(tmp_path / "pairs.jsonl", rows), "--tokenizer", str(tmp_path / "llama2"))
    record = record_of(folder)
    assert record["tokenizer"]["kind"] == "sentencepiece"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "llama2" / "tokenizer.model"))
    longest = 0
    for row in rows_of(folder, "train"):
        start, *sides = (
            processor.encode(text)
            for text in (
                row["prompt"],
                row["prompt"] + row["chosen_response"],
                row["prompt"] + row["rejected_response"],
            )
        )
        assert all(side[:-1][: len(start)] == start for side in sides)
        longest = max(longest, *map(len, sides))
    assert record["lengths"]["train"]["max"] == longest


CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_chat_template_beside_the_tokenizer(prepare: Prepare, tmp_path: Path, place: str) -> None:
    folder = characters_as_tokens(tmp_path / "hf")
    config: dict[str, Any] = {"eos_token": {"content": "</s>"}}
    if place == "chat_template.jinja":
        (folder / place).write_text(CHAT)
    else:
        config["chat_template"] = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHAT}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    source = write(tmp_path / "pairs.jsonl", many(60))
    made = prepare(source, "--tokenizer", str(folder), "--prompt-format", "chat")
    row = rows_of(made, "train")[0]
    assert re.fullmatch(r"\[user\] question \d+\?</s>\[assistant\]", row["prompt"])
    assert (row["chosen_response"], row["rejected_response"]) == (" yes</s>", " no</s>")
    assert record_of(made)["prompt_format"]["name"] == "chat"


def test_formats_that_the_tokenizer_does_not_have_are_refused(refused: Refusal, tmp_path: Path) -> None:
    source, folder = write(tmp_path / "pairs.jsonl", many(60)), str(characters_as_tokens(tmp_path / "hf"))
    assert "add --tokenizer" in refused(source, "--prompt-format", "chat")
    assert "has no chat template" in refused(source, "--prompt-format", "chat", "--tokenizer", folder)
    assert "has no token <|begin_of_text|>" in refused(source, "--prompt-format", "llama3", "--tokenizer", folder)
    (tmp_path / "hf" / "chat_template.jinja").write_text("{% for %}")
    assert "Jinja cannot parse" in refused(source, "--prompt-format", "chat", "--tokenizer", folder)
    (tmp_path / "hf" / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is not JSON" in refused(source, "--tokenizer", folder)


def test_special_tokens_spelled_out_in_a_text_are_dropped(prepare: Prepare, tmp_path: Path) -> None:
    byte_level("llama3").save(str(tmp_path / "tokenizer.json"))
    rows = [*many(60), hh("What is <|eot_id|>?"), hh("q", "a<s>b")]
    words = ("--tokenizer", str(tmp_path / "tokenizer.json"), "--prompt-format", "llama3")
    record = record_of(prepare(write(tmp_path / "pairs.jsonl", rows), *words))
    assert record["dropped"] == {"a marker of the format inside a text": 2}
    assert record["repaired"] == {}


def test_long_pairs_lose_their_oldest_exchanges(prepare: Prepare, tmp_path: Path) -> None:
    old = "\n\nHuman: old {0}\n\nAssistant: old\n\nHuman: older {0}\n\nAssistant: older"
    rows = [
        {side: old.format(n) + text for side, text in hh(f"last {n:02}", "y" * (n % 30 + 1), "n").items()}
        for n in range(60)
    ]
    folder = str(characters_as_tokens(tmp_path / "hf"))
    source = write(tmp_path / "pairs.jsonl", [*rows, hh("x" * 100)])
    most = len("\n\nHuman: last 00\n\nAssistant: ") + 20
    words = (source, "--tokenizer", folder, "--max-tokens", str(most))
    record = record_of(prepare(*words, "--too-long", "cut"))
    assert record["repaired"] == {"oldest turns cut off": 40}
    assert record["dropped"] == {"over --max-tokens": 21}
    assert {row["prompt"].count("Human:") for row in rows_of(tmp_path / "out", "train")} == {1}
    longer = str(most + len("\n\nHuman: older 00\n\nAssistant: older"))
    record = record_of(prepare(*words[:-1], longer, "--too-long", "cut"))
    assert (record["repaired"], record["dropped"]) == ({"oldest turns cut off": 60}, {"over --max-tokens": 1})
    assert {row["prompt"].count("Human:") for row in rows_of(tmp_path / "out", "train")} == {1, 2}


def test_a_cut_pair_stays_with_the_earlier_stages_of_its_conversation(prepare: Prepare, tmp_path: Path) -> None:
    """The later stages lose their first exchange; their splits still follow from the first question."""
    rows = []
    for number in range(100):
        first, second = f"first {number:02}", f"second {number:02}"
        later = f"{first}\n\nAssistant: {'a' * 60}\n\nHuman: {second}"
        rows += [hh(first), hh(later), hh(f"{later}\n\nAssistant: yes\n\nHuman: third {number:02}")]
    folder = str(characters_as_tokens(tmp_path / "hf"))
    most = len("\n\nHuman: second 00\n\nAssistant: yes\n\nHuman: third 00\n\nAssistant: yes")
    words = (write(tmp_path / "pairs.jsonl", rows), "--tokenizer", folder, "--max-tokens", str(most))
    for sizes in (("--validation", "0.3", "--test", "0.3"), ("--validation", "60", "--test", "60")):
        made = prepare(*words, "--too-long", "cut", *sizes)
        assert record_of(made)["repaired"] == {"oldest turns cut off": 200}
        numbers = [{re.findall(r"\d\d", prompt)[-1] for prompt in prompts(made, name)} for name in splits.NAMES]
        assert sum(map(len, numbers)) == len(set().union(*numbers)) == 100


def test_equal_remains_of_two_conversations_are_not_in_two_splits(prepare: Prepare, tmp_path: Path) -> None:
    rows = [hh(f"first {number:02}\n\nAssistant: {'a' * 60}\n\nHuman: Why?", f"yes {number}") for number in range(40)]
    source = write(tmp_path / "pairs.jsonl", [*many(60), *rows])
    words = ("--tokenizer", str(characters_as_tokens(tmp_path / "hf")), "--max-tokens", "60", "--too-long", "cut")
    record = record_of(prepare(source, *words))
    assert record["dropped"] == {"prompt is in another split": 39}
    assert sum(record["rows"].values()) == 61


# -- memory and kills --------------------------------------------------------------------------------------------------


def test_hash_set_is_a_set(tmp_path: Path) -> None:
    import random

    drawn = random.Random(0)
    hashes = [0, 1, 2**64 - 1, *(drawn.randrange(2**64) for _ in range(40_000)), *range(0, 2**26, 2**18)]
    known, table = set(), HashSet(tmp_path / "hashes")
    for hash_ in [*hashes, *hashes[:100]]:
        folded = hash_ or 1  # 0 marks a free place
        assert table.add(hash_) == (folded not in known)
        known.add(folded)
        assert hash_ in table
    assert len(table) == len(known)
    assert (tmp_path / "hashes").stat().st_size <= 32 * len(known)
    table.close()
    assert not (tmp_path / "hashes").exists()


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3])
def test_killed_outright_it_leaves_nothing_that_looks_whole(prepare: Prepare, tmp_path: Path, moment: float) -> None:
    source = write(tmp_path / "pairs.jsonl", many(20_000))
    words = [sys.executable, str(ROOT / "data_prep" / "prepare_data.py"), str(source), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/.partial.*/train.jsonl")) and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".partial")]
    assert left in ([], ["dataset.json", "test.jsonl", "train.jsonl", "validation.jsonl"])
    assert record_of(prepare(source))["rows_read"] == 20_000
    assert not list((tmp_path / "out").glob(".partial*"))
