"""Source -> rows: read, form pairs, drop what cannot be trained on, measure, divide, write.

Rows stream through in batches; what stays in memory is some numbers a row (hashes, length), never its text.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep import hh_format, jsonl, splits
from data_prep.lengths import Lengths
from data_prep.pair_tokens import PairTokenizer
from data_prep.pairs import BadRow, Drop, Pair
from data_prep.progress import Progress
from data_prep.sources import Opener, Source
from launcher.findings import Finding, Refused

#: Raised when the same source and options should give other files.
RULES = 1
BATCH = 512  # pairs measured at once: enough to keep the tokenizer's threads busy, and a few MB

#: How a source writes its pairs: row -> Pair or Drop, raising BadRow.
FORMATS: dict[str, Callable[[Mapping[str, object]], Pair | Drop]] = {"hh": hh_format.to_pair}


@dataclass(frozen=True)
class Options:
    """What decides, beside the source and the tokenizer, what is written."""

    format: str
    sizes: splits.Sizes
    max_tokens: int | None = None
    limit: int | None = None
    skip_bad_lines: bool = False


def recipe(source: Source, options: Options, tokenizer: PairTokenizer | None) -> dict[str, Any]:
    """All that the files follow from, for dataset.json: equal recipes give equal files, byte for byte."""
    return {
        "rules": RULES,
        "source": source.facts,
        "options": asdict(options),
        "tokenizer": {"sha256": tokenizer.sha256} if tokenizer else None,
    }


def build(
    source: Source, options: Options, tokenizer: PairTokenizer | None, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Write the three files into `folder` and return what dataset.json says of them.

    Raises Refused for a bad line (unless they are skipped) and where a split would be empty or short.
    """
    if tokenizer:
        tokenizer.load()
    sieve = Sieve(options, tokenizer)
    lengths = {name: Lengths() for name in splits.NAMES}
    writers = {name: jsonl.Writer(folder / f"{name}.jsonl") for name in splits.NAMES}
    try:
        for pool, open_pool in source.pools.items():
            with progress.phase(f"reading {source.name}" + ("" if pool == "all" else f", {pool.replace('_', ' ')}")):

                def at(share: float) -> None:
                    progress.detail = f"{share:.0%}, {sieve.read:,} rows"

                kept = sieve.keep_pool(open_pool, at, folder / ".pool.jsonl")
            with progress.phase("dividing") if len(kept) > 100_000 else nullcontext():
                _deal(pool, kept, options.sizes, folder / ".pool.jsonl", writers, lengths, sieve.dropped)
    finally:
        files = {f"{name}.jsonl": writer.close() for name, writer in writers.items()}
        (folder / ".pool.jsonl").unlink(missing_ok=True)
    rows = {name: writers[name].rows for name in splits.NAMES}
    _check_rows(rows, options.sizes, sieve)
    return {
        "rows_read": sieve.read,
        "rows": rows,
        "dropped": {reason.value: sieve.dropped[reason] for reason in Drop if sieve.dropped[reason]},
        "files": files,
        "lengths": {
            "of": "prompt + the longer response",
            "unit": "tokens" if tokenizer else "characters",
            **{name: lengths[name].facts() for name in splits.NAMES},
        },
    }


@dataclass
class Kept:
    """What is remembered of the rows of a pool that were kept, in their order: 12 bytes a row."""

    openings: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        return len(self.lengths)


class Sieve:
    """Lets through what NeMo-Aligner can train on and counts the rest by reason."""

    def __init__(self, options: Options, tokenizer: PairTokenizer | None) -> None:
        self.read = 0
        self.dropped: Counter[Drop] = Counter()
        self._options = options
        self._to_pair = FORMATS[options.format]
        self._tokenizer = tokenizer
        self._seen: set[int] = set()  # hashes of rows, in all pools
        self._other_prompts: set[int] = set()  # hashes of the prompts of the pools before this one

    def keep_pool(self, open_pool: Opener, at: Callable[[float], None], to: Path) -> Kept:
        """Writes the rows of one pool that are kept to `to`, in their order."""
        kept, prompts = Kept(), set()
        writer = jsonl.Writer(to)
        pairs = self._pairs(open_pool(at))
        limit = self._options.limit or sys.maxsize
        try:
            # No more is taken than may still be kept, so that every row read is either kept or counted as dropped.
            while batch := list(islice(pairs, min(BATCH, limit - len(kept)))):
                for pair, length in self._measured(batch):
                    writer.write(jsonl.encode(pair.row()))
                    kept.openings.append(pair.opening_hash())
                    kept.lengths.append(length)
                    prompts.add(pair.prompt_hash())
        finally:
            writer.close()
        self._other_prompts |= prompts
        return kept

    def _pairs(self, records: Iterator[jsonl.Record]) -> Iterator[Pair]:
        for record in records:
            self.read += 1
            pair = self._judge(record)
            if isinstance(pair, Drop):
                self.dropped[pair] += 1
            else:
                yield pair

    def _judge(self, record: jsonl.Record) -> Pair | Drop:
        if record.row is None:
            return self._bad(record.where, record.wrong, Drop.NOT_JSON)
        try:
            pair = self._to_pair(record.row)
            if isinstance(pair, Drop):
                return pair
            row_hash, prompt_hash = pair.row_hash(), pair.prompt_hash()
        except BadRow as error:
            return self._bad(record.where, str(error), Drop.WRONG_KEYS)
        except UnicodeEncodeError:
            return Drop.NOT_TEXT
        if prompt_hash in self._other_prompts:
            return Drop.OTHER_SPLIT
        if row_hash in self._seen:
            return Drop.DUPLICATE
        self._seen.add(row_hash)
        return pair

    def _bad(self, where: str, why: str, drop: Drop) -> Drop:
        if not self._options.skip_bad_lines:
            raise Refused([Finding(where, "", why, "correct the line, or leave such lines out with --skip-bad-lines")])
        return drop

    def _measured(self, batch: list[Pair]) -> Iterator[tuple[Pair, int]]:
        """The pairs of the batch that the tokenizer has nothing against, each with the length of its longer side."""
        if self._tokenizer is None:
            yield from ((pair, pair.longer_side()) for pair in batch)
            return
        for pair, length in zip(batch, self._tokenizer.measure(batch), strict=True):
            if isinstance(length, Drop):
                self.dropped[length] += 1
            else:
                yield pair, length


def _deal(
    pool: str,
    kept: Kept,
    sizes: splits.Sizes,
    lines: Path,
    writers: Mapping[str, jsonl.Writer],
    lengths: Mapping[str, Lengths],
    dropped: Counter[Drop],
) -> None:
    """Copies each kept row of the pool into the file of its split; the order of the source is kept."""
    places = splits.assign(pool, kept.openings, sizes)
    with lines.open("rb") as file:
        for line, place, length in zip(file, places, kept.lengths, strict=True):
            if place == splits.UNUSED:
                dropped[Drop.NOT_ASKED_FOR] += 1
                continue
            name = splits.NAMES[place]
            writers[name].write(line)
            lengths[name].add(length)


def _check_rows(rows: Mapping[str, int], sizes: splits.Sizes, sieve: Sieve) -> None:
    """NeMo-Aligner needs rows in every file, so an empty one is better refused here than on the cluster."""
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
