"""Source -> files: sift, divide, write, pack. Rows stream through; memory does not depend on how many there are."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.pairs import jsonl, packed, splits
from data_prep.pairs.conversation import Drop, Mend
from data_prep.pairs.lengths import Lengths
from data_prep.pairs.pair_tokens import PairTokenizer
from data_prep.pairs.prompt_formats import Llama3, PromptFormat
from data_prep.pairs.sieve import Options, Sieve
from data_prep.pairs.sources import Source
from data_prep.progress import Progress
from launcher.findings import Finding, Refused

#: Raised when the same source and options should give other files.
RULES = 2


def recipe(
    source: Source, options: Options, prompt_format: PromptFormat, tokenizer: PairTokenizer | None
) -> dict[str, Any]:
    """All that the files follow from, for dataset.json: equal recipes give equal files, byte for byte."""
    files = tokenizer.files if tokenizer else None
    return {
        "rules": RULES,
        "source": source.facts,
        "options": asdict(options),
        "prompt_format": prompt_format.facts,
        "tokenizer": {"sha256": files.sha256, "kind": files.kind} if files else None,
    }


def build(
    source: Source,
    options: Options,
    prompt_format: PromptFormat,
    tokenizer: PairTokenizer | None,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write the files into `folder` and return what dataset.json says of them.

    Raises Refused for a bad line (unless they are skipped) and where a split would be empty or short.
    """
    if tokenizer:
        tokenizer.load()
        _check_tokens(prompt_format, tokenizer)
    sieve = Sieve(options, prompt_format, tokenizer, folder)
    outputs = [Output(folder / f"{name}.jsonl") for name in splits.NAMES]
    try:
        for pool, open_pool in source.pools.items():
            with progress.phase(f"reading {source.name}" + ("" if pool == "all" else f", {pool.replace('_', ' ')}")):

                def at(share: float) -> None:
                    progress.detail = f"{share:.0%}, {sieve.read:,} rows"

                _divide(pool, sieve.kept(open_pool(at)), options.sizes, outputs, sieve, folder)
    finally:
        files = {f"{name}.jsonl": output.writer.close() for name, output in zip(splits.NAMES, outputs, strict=True)}
        sieve.close()
    rows = {name: output.writer.rows for name, output in zip(splits.NAMES, outputs, strict=True)}
    _check_rows(rows, options.sizes, sieve)
    made: dict[str, Any] = {
        "rows_read": sieve.read,
        "rows": rows,
        "dropped": {reason.value: sieve.dropped[reason] for reason in Drop if sieve.dropped[reason]},
        "mended": {mend.value: sieve.mended[mend] for mend in Mend if sieve.mended[mend]},
        "files": files,
        "lengths": {
            "of": "prompt + the longer response",
            "unit": "tokens" if tokenizer else "characters",
            **{name: output.lengths.facts() for name, output in zip(splits.NAMES, outputs, strict=True)},
        },
    }
    if options.pack and tokenizer:
        made["packed"] = {"size": options.pack}
        for name in splits.NAMES:
            with progress.phase(f"packing {name}"):

                def done(pairs: int, of: int = rows[name]) -> None:
                    progress.detail = f"{pairs / of:.0%}, {pairs:,} pairs"

                target = folder / packed.name(name)
                facts, filled = packed.write(folder / f"{name}.jsonl", target, tokenizer, options.pack, done)
                files[target.name], made["packed"][name] = facts, filled
    return made


class Output:
    """One of the files in the making."""

    def __init__(self, path: Path) -> None:
        self.writer = jsonl.Writer(path)
        self.lengths = Lengths()

    def add(self, line: bytes, length: int) -> None:
        self.writer.write(line)
        self.lengths.add(length)


def _divide(
    pool: str, kept: Iterator[Any], sizes: splits.Sizes, outputs: list[Output], sieve: Sieve, folder: Path
) -> None:
    """Each row into the file of its split, in the order of the source."""
    if not splits.by_number(pool, sizes):
        for pair, length in kept:
            outputs[splits.place(pool, pair.opening_hash(), sizes)].add(jsonl.encode(pair.row()), length)
        return
    with Aside(folder) as aside:
        for pair, length in kept:
            aside.put(pair.opening_hash(), length, jsonl.encode(pair.row()))
        places = splits.deal(pool, aside, sizes)
        for place, length, line in zip(places, aside.lengths(), aside.lines(), strict=True):
            if place == splits.UNUSED:
                sieve.dropped[Drop.NOT_ASKED_FOR] += 1
            else:
                outputs[place].add(line, length)


class Aside:
    """Rows put aside on the disk until all are known; iterating gives the hashes of their openings."""

    _NUMBERS = struct.Struct("<QI")

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / ".aside.jsonl", folder / ".aside.numbers")
        self._rows = 0

    def __enter__(self) -> Aside:
        self._lines, self._numbers = (path.open("w+b") for path in self._paths)
        return self

    def __exit__(self, *error: object) -> None:
        for file, path in zip((self._lines, self._numbers), self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        return (opening for opening, _ in self._read())

    def put(self, opening: int, length: int, line: bytes) -> None:
        self._lines.write(line)
        self._numbers.write(self._NUMBERS.pack(opening, length))
        self._rows += 1

    def lengths(self) -> Iterator[int]:
        return (length for _, length in self._read())

    def lines(self) -> Iterator[bytes]:
        self._lines.seek(0)
        yield from self._lines

    def _read(self) -> Iterator[tuple[int, int]]:
        self._numbers.flush()
        with self._paths[1].open("rb") as file:  # of its own: it is read twice at a time
            while block := file.read(self._NUMBERS.size << 12):
                yield from self._NUMBERS.iter_unpack(block)


def _check_tokens(prompt_format: PromptFormat, tokenizer: PairTokenizer) -> None:
    if not isinstance(prompt_format, Llama3):
        return
    missing = [token for token in prompt_format.TOKENS if tokenizer.token_id(token) is None]
    if missing:
        why = f"has no token {missing[0]}, which --prompt-format llama3 writes"
        remedy = "give the tokenizer of a Llama 3, or use --prompt-format chat or hh"
        raise Refused([Finding("--tokenizer", str(tokenizer.files.path), why, remedy)])


def _check_rows(rows: dict[str, int], sizes: splits.Sizes, sieve: Sieve) -> None:
    total = sum(rows.values())
    if not total:
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in sieve.dropped.most_common()) or "it is empty"
        raise Refused([Finding("SOURCE", "", f"no pairs left of {sieve.read} rows read ({reasons})", "check the file")])
    found = []
    for name in splits.NAMES:
        asked = getattr(sizes, name, 1)
        needed = asked if isinstance(asked, int) else 1
        if rows[name] < needed:
            why = f"gets {rows[name]} rows where {needed} are needed, of {total} pairs"
            remedy = "give more pairs, or other --validation and --test (a share or a number of rows)"
            found.append(Finding(f"{name}.jsonl", "", why, remedy))
    if found:
        raise Refused(found)
