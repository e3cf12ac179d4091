"""Packs of pairs as a NumPy file: what is in them, in what order, and when they are not written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.pairs import packed
from tests.unit.prepare_tools import FILES, Prepare, Refusal, byte_level, many, record_of, rows_of, write

np = pytest.importorskip("numpy")


def tokenizer_of(folder: Path, eos: str) -> Path:
    folder.mkdir()
    byte_level("llama3").save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


def test_packs_hold_every_pair_once(prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tokenizers import Tokenizer

    folder = tokenizer_of(tmp_path / "hf", "<s>")
    words = (write(tmp_path / "pairs.jsonl", many(300)), "--tokenizer", str(folder), "--max-tokens", "60")
    made = prepare(*words, "--pack", "256")
    assert "model.data.data_impl=packed_jsonl model.encoder_seq_length=256" in capsys.readouterr().out
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for split in ("train", "validation", "test"):
        found = []
        for pack in np.load(made / f"{split}_packed.npy", allow_pickle=True):
            ends = pack["seq_boundaries"]
            assert len(pack["input_ids"]) == len(pack["labels"]) == ends[-1]
            assert sum(pack["lengths"]) <= 256
            assert pack["reward"] == [1.0, 0.0] * (len(ends) // 2)
            for begin, end, length in zip(ends[:-1], ends[1:], pack["lengths"], strict=True):
                assert length == end - begin - 1
                ids, labels = pack["input_ids"][begin:end].tolist(), pack["labels"][begin:end].tolist()
                response = [label for label in labels if label != -100]
                assert labels == [-100] * (len(ids) - len(response)) + ids[len(ids) - len(response) :]
                found.append((tokenizer.decode(ids), tokenizer.decode(response)))
        sides = [
            (row["prompt"] + row[side], row[side])
            for row in rows_of(made, split)
            for side in ("chosen_response", "rejected_response")
        ]
        assert sorted(found) == sorted(sides)
    record = record_of(made)
    assert record["packed"]["size"] == 256
    assert record["packed"]["train"]["filled"] > 0.8
    prepare(*words)  # without packs none are left over
    assert sorted(path.name for path in made.iterdir()) == FILES


def test_packing_is_first_fit_with_few_packs_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "OPEN", 2)

    def pair(number: int, tokens: int) -> tuple[packed._Side, packed._Side]:
        return ([number] * (tokens + 1), 1, 1.0), ([number] * 2, 1, 0.0)  # as inputs: `tokens` and 1

    packs = packed.first_fit(iter([pair(0, 6), pair(1, 8), pair(2, 2), pair(3, 5), pair(4, 3)]), 10)
    assert [[ids[0] for ids, _, _ in pack[::2]] for pack in packs] == [[0, 2], [1], [3, 4]]


def test_packs_that_nemo_aligner_would_misread_are_refused(refused: Refusal, tmp_path: Path) -> None:
    folder = tokenizer_of(tmp_path / "hf", "<|eot_id|>")
    source = write(tmp_path / "pairs.jsonl", many(60))
    words = ("--tokenizer", str(folder), "--max-tokens", "99", "--pack", "256", "--prompt-format", "llama3")
    assert "conversations contain <|eot_id|>, the tokenizer's end token" in refused(source, *words)
