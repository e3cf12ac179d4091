"""What the tests of prepare_data.py share: rows in HH-RLHF's form, files of them, the command run in this process."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.prepare_data import main

ROOT = Path(__file__).resolve().parents[2]
FILES = ["dataset.json", "test.jsonl", "train.jsonl", "validation.jsonl"]


def hh(question: str, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + chosen, "rejected": start + rejected}


def many(number: int, start: int = 0) -> list[dict[str, str]]:
    return [hh(f"question {n}?") for n in range(start, start + number)]


def write(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines; strings and bytes as they are. Packed where the name ends in .gz."""
    texts = (row if isinstance(row, str | bytes) else json.dumps(row) for row in rows)
    data = b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_bytes().splitlines()]


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_bytes()))


def prompts(folder: Path, split: str) -> set[str]:
    return {row["prompt"] for row in rows_of(folder, split)}


def characters_as_tokens(folder: Path, *merges: str) -> Path:
    """An HF folder with a tokenizer of single ASCII characters; `merges`, of two characters each, are one token."""
    tokenizers = pytest.importorskip("tokenizers")
    characters = [*map(chr, range(32, 127)), "\n", *merges]
    vocabulary = {token: number for number, token in enumerate(characters)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [(merge[0], merge[1]) for merge in merges]))
    made.enable_truncation(10)  # as left behind by whoever saved it: lengths must be the true ones all the same
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


class Prepare:
    """prepare(source, *options) -> the folder that was written, "out" in the test's folder unless named."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, source: Path | str, *options: str, out: str = "out") -> Path:
        assert main([str(source), "--out", str(self._folder / out), *options]) == 0
        return self._folder / out


class Refusal:
    """refused(source, *options) -> the one line of the refusal; nothing is left written."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys

    def __call__(self, source: Path | str, *options: str) -> str:
        where = () if "--out" in options else ("--out", str(self._folder / "out"))
        try:
            code = main([str(source), *options, *where])
        except SystemExit as exit_:  # argparse's own way
            code = int(str(exit_.code))
        errors = self._capsys.readouterr().err.splitlines()
        lines = [line for line in errors if not line.startswith("prepare_data:")]
        assert code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert not (self._folder / "out").exists()
        assert not list(self._folder.rglob("*.partial*"))
        return lines[0]


#: Splits as GPT-2 makes them, SmolLM2 (digits alone), Llama 3
KINDS = ("gpt2", "digits", "llama3")


def byte_level(kind: str) -> Any:
    """A small byte-level BPE tokenizer that splits like one of KINDS, or with "characters" not at all."""
    from data_prep.models.tiny_tokenizer import _TEXT
    from data_prep.pairs.token_counter import _LLAMA3

    tokenizers = pytest.importorskip("tokenizers")
    before = tokenizers.pre_tokenizers
    whole = before.ByteLevel(add_prefix_space=False, use_regex=False)
    splits = {
        "gpt2": before.ByteLevel(add_prefix_space=False),
        "digits": before.Sequence([before.Digits(individual_digits=True), before.ByteLevel(add_prefix_space=False)]),
        "llama3": before.Sequence([before.Split(tokenizers.Regex(_LLAMA3), "isolated"), whole]),
        "characters": whole,
    }
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = splits[kind]
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|x|>", "<s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=before.ByteLevel.alphabet(), show_progress=False
    )
    lines = [_TEXT, "word!\n\nWord:\n\n  - item  one\n", "It's 12345 ... the end?\n\n", "naïve café 你好 🙂🙂"] * 3
    made.train_from_iterator(lines, trainer)
    return made
