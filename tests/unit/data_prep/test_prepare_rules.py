"""Which rows prepare_data.py drops and counts, and how it measures and divides the others."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.pairs import sources, splits
from data_prep.pairs.conversation import Drop
from data_prep.pairs.lengths import Lengths
from data_prep.pairs.pair_filter import Options, PairFilter
from data_prep.pairs.prompt_formats import HH
from data_prep.progress import Progress
from launcher.whole_file import sha256
from tests.unit.prepare_tools import Prepare, Refusal, characters_as_tokens, hh, many, record_of, rows_of, write


def test_every_reason_is_counted(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    surrogate = json.dumps(hh("half of a pair: \ud800"))
    bad = [
        ("broken turn order", {"chosen": "\n\nAssistant: alone", "rejected": "\n\nAssistant: alone"}),
        ("no prompt", {"chosen": "Human only", "rejected": "Human only"}),
        ("prompts differ", {"chosen": hh("a")["chosen"], "rejected": hh("b")["rejected"]}),
        ("empty response", hh("c", " ")),
        ("equal responses", hh("d", "same", "same ")),
        ("empty turn in the prompt", hh(" ")),
        ("duplicate", hh("question 3?")),
        ("not encodable as UTF-8", surrogate),
        ("control characters", hh("bell \x07")),
    ]
    rows = [row for _, row in bad]
    record = record_of(prepare(write(tmp_path / "pairs.jsonl", [*many(60), *rows])))
    assert record["dropped"] == {reason: 1 for reason, _ in bad}
    assert record["rows_read"] == 69
    shown = capsys.readouterr().out
    assert all(reason in shown for reason, _ in bad)


def test_bad_lines_are_counted_when_asked(prepare: Prepare, tmp_path: Path) -> None:
    bad = ["{", "[1]", '{"chosen": "x"}', '{"chosen": 1, "rejected": null}', b"\xff", "[" * 100_000, "9" * 5000]
    record = record_of(prepare(write(tmp_path / "pairs.jsonl", [*bad, *many(60)]), "--skip-bad-lines"))
    assert record["dropped"] == {"not JSON": 5, "missing or wrong keys": 2}


mostly_right = st.builds(hh, st.sampled_from("abcdefgh"), st.sampled_from(["yes", "no", "", " x"]))
wrong = st.dictionaries(st.sampled_from(["chosen", "rejected"]), st.text() | st.integers()) | st.text() | st.integers()
chaos = st.lists(st.one_of(mostly_right, wrong.map(json.dumps), st.binary(max_size=20)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(rows=chaos)
def test_every_row_read_is_written_or_counted(rows: list[Any]) -> None:
    rows = [hh("first"), *rows]  # a file that begins with [, or as gzip does, is no JSON Lines
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name) / "pairs.jsonl", rows)
        pair_filter = PairFilter(Options("auto", splits.Sizes(0.2, 0.2), skip_bad_lines=True), HH(), None, Path(name))
        kept = list(pair_filter.kept(sources.find(str(path)).pools["all"](lambda share: None)))
        written = [pair.row() for pair, _ in kept]
        lines = [line for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert pair_filter.read == len(lines) == len(kept) + sum(pair_filter.dropped.values())
    assert len(written) == len({json.dumps(row) for row in written})
    sources_of = {json.dumps(row) for row in rows if isinstance(row, dict)}
    for row in written:
        pair = {"chosen": row["prompt"] + row["chosen_response"], "rejected": row["prompt"] + row["rejected_response"]}
        assert json.dumps(pair) in sources_of or any(" x" in side for side in pair.values())


def as_nemo(tokenizer: Path, path: Path, inside: str) -> Path:
    text = (tokenizer / "tokenizer.json").read_bytes()
    with tarfile.open(path, "w") as archive:
        for name, data in (("./model_config.yaml", b"x"), (inside, text), ("./model_weights/big", b"0" * 9000)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_border_that_a_token_crosses_is_moved(prepare: Prepare, tmp_path: Path) -> None:
    tokenizer = characters_as_tokens(tmp_path / "hf", ": ")
    folder = prepare(write(tmp_path / "pairs.jsonl", many(60)), "--tokenizer", str(tokenizer))
    assert record_of(folder)["repaired"] == {"border moved to where tokens end": 60}
    for row in rows_of(folder, "train"):
        assert row["prompt"].endswith("\n\nAssistant")
        assert (row["chosen_response"], row["rejected_response"]) == (": yes", ": no")


def test_pairs_whose_tokens_cannot_be_parted_are_dropped(refused: Refusal, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, "?"))  # any text is one token
    words.save(str(tmp_path / "tokenizer.json"))
    said = refused(write(tmp_path / "pairs.jsonl", many(60)), "--tokenizer", str(tmp_path / "tokenizer.json"))
    assert "no pairs left of 60 rows read (60 tokens merge at the prompt's end)" in said


def test_lengths_in_tokens_and_the_longest_allowed(prepare: Prepare, tmp_path: Path) -> None:
    rows = [hh(f"{number:03}", "y" * (1 + number % 10)) for number in range(200)]
    source = write(tmp_path / "pairs.jsonl", rows)
    tokenizer = characters_as_tokens(tmp_path / "hf", "An")
    start = len("\n\nHuman: 000\n\nAssistant: ")
    record = record_of(prepare(source, "--tokenizer", str(tokenizer), "--max-tokens", str(start + 5)))
    assert record["dropped"] == {"over --max-tokens": 100}
    assert record["lengths"]["unit"] == "tokens"
    assert max(record["lengths"][name]["max"] for name in splits.NAMES) == start + 5
    assert record["tokenizer"]["sha256"] == sha256(tokenizer / "tokenizer.json")


@pytest.mark.parametrize("inside", ["./tokenizer/tokenizer.json", "0123abcd_tokenizer.json", "tokenizer.json"])
def test_tokenizer_is_found_inside_a_nemo_file(prepare: Prepare, tmp_path: Path, inside: str) -> None:
    tokenizer = characters_as_tokens(tmp_path / "hf")
    nemo = as_nemo(tokenizer, tmp_path / "model.nemo", inside)
    source = write(tmp_path / "pairs.jsonl", many(60))
    one = prepare(source, "--tokenizer", str(nemo), out="one")
    two = prepare(source, "--tokenizer", str(tokenizer / "tokenizer.json"), out="two")
    assert (one / "dataset.json").read_bytes() == (two / "dataset.json").read_bytes()


def test_bad_tokenizers_are_refused(refused: Refusal, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", many(60))
    (tmp_path / "text.nemo").write_text("no archive")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    as_nemo(characters_as_tokens(tmp_path / "hf"), tmp_path / "other.nemo", "./vocab.txt")
    reasons = {"gone": "no such", "text.nemo": "neither", "bad.json": "is not a tokenizer"}
    for name, why in {
        **reasons,
        "empty": "contains no tokenizer.json",
        "other.nemo": "contains no tokenizer.json",
    }.items():
        assert why in refused(source, "--tokenizer", str(tmp_path / name))


@given(st.lists(st.integers(min_value=1, max_value=10_000), min_size=1, max_size=200))
def test_statistics_of_lengths(lengths: list[int]) -> None:
    statistics = Lengths()
    for length in lengths:
        statistics.add(length)
    facts, ordered = statistics.facts(), sorted(lengths)
    assert facts["max"] == ordered[-1]
    assert facts["mean"] == round(sum(lengths) / len(lengths), 1)
    assert facts["median"] == ordered[(len(lengths) - 1) // 2]
    assert facts["p99"] == ordered[-(-99 * len(lengths) // 100) - 1]
    assert sum(facts["histogram"].values()) == len(lengths)


@given(
    pool=st.sampled_from(["all", "held_out", "train", "validation", "test"]),
    openings=st.lists(st.integers(min_value=0, max_value=2**64 - 1) | st.integers(0, 5), max_size=60),
    sizes=st.builds(splits.Sizes, st.floats(0.01, 0.49), st.floats(0.01, 0.49))
    | st.builds(splits.Sizes, st.integers(1, 20), st.integers(1, 20)),
)
def test_a_row_gets_a_split_of_its_pool_and_an_opening_only_one(
    pool: str, openings: list[int], sizes: splits.Sizes
) -> None:
    if splits.by_number(pool, sizes):
        places = list(splits.deal(pool, openings, sizes))
    else:
        places = [splits.place(pool, opening, sizes) for opening in openings]
    assert len(places) == len(openings)
    assert set(places) <= {*splits.POOLS[pool], splits.UNUSED}
    used = {(opening, place) for opening, place in zip(openings, places, strict=True) if place != splits.UNUSED}
    assert len(used) == len({opening for opening, _ in used})
    if sizes.exact and pool != "train":
        assert places.count(splits.VALIDATION) <= sizes.validation
        assert places.count(splits.TEST) <= sizes.test
        if splits.TRAIN in places:  # rows were left over, so there were enough
            assert (places.count(splits.VALIDATION), places.count(splits.TEST)) == (sizes.validation, sizes.test)
    else:
        assert splits.UNUSED not in places


def test_all_reasons_have_names_of_their_own() -> None:
    assert len({reason.value for reason in Drop}) == len(Drop)


def test_progress_is_told_how_far_reading_is(tmp_path: Path) -> None:
    source = sources.find(str(write(tmp_path / "pairs.jsonl", many(3000))))
    told: list[float] = []
    pair_filter = PairFilter(Options("hh", splits.Sizes(0.1, 0.1)), HH(), None, tmp_path)
    assert len(list(pair_filter.kept(source.pools["all"](told.append)))) == 3000
    assert told == sorted(told)
    assert len(told) == 11
    assert 0 < told[0] < told[-1] <= 1
    assert Progress("x").detail == ""
