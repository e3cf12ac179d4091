"""Rows of a source in, the pairs that NeMo-Aligner can train on out; the others are counted by reason.

What is remembered of a row are two hashes on the disk, never its text.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_prep.pairs import splits
from data_prep.pairs.conversation import BadRow, Drop, Mend, Pair, Talk
from data_prep.pairs.forms import FORMS
from data_prep.pairs.hash_set import HashSet
from data_prep.pairs.jsonl import Record
from data_prep.pairs.pair_tokens import Measured, PairTokenizer
from data_prep.pairs.prompt_formats import PromptFormat
from launcher.findings import Finding, Refused

BATCH = 256  # pairs measured at once: enough to keep the tokenizer's threads busy, and a MB or so


@dataclass(frozen=True)
class Options:
    """What decides, beside the source, the tokenizer and the prompt format, what is written."""

    format: str
    sizes: splits.Sizes
    max_tokens: int | None = None
    too_long: str = "drop"
    limit: int | None = None
    skip_bad_lines: bool = False
    pack: int | None = None


class Sieve:
    """`folder` is for its notes, which `close` removes."""

    def __init__(
        self, options: Options, prompt_format: PromptFormat, tokenizer: PairTokenizer | None, folder: Path
    ) -> None:
        self.read = 0
        self.dropped: Counter[Drop] = Counter()
        self.mended: Counter[Mend] = Counter()
        self._options = options
        self._to_talk = FORMS[options.format]
        self._format = prompt_format
        self._tokenizer = tokenizer
        self._folder = folder
        self._rows = HashSet(folder / ".rows")
        self._prompts: list[HashSet] = []  # of the pools so far, the one being read last

    def close(self) -> None:
        for notes in (self._rows, *self._prompts):
            notes.close()

    def kept(self, records: Iterator[Record]) -> Iterator[tuple[Pair, int]]:
        """The pairs of one pool that are kept, in their order, each with its length in tokens or characters.

        Raises Refused for a bad line, unless such are skipped.
        """
        self._prompts.append(HashSet(self._folder / f".prompts{len(self._prompts)}"))
        written = self._written(records)
        left = self._options.limit or sys.maxsize
        # No more is taken than may still be kept, so that every row read is either kept or counted as dropped.
        while batch := list(islice(written, min(BATCH, left))):
            for one in self._measured(batch):
                found = one if isinstance(one, Drop) else self._known(one.pair)
                if found is not None:
                    self.dropped[found] += 1
                    continue
                assert isinstance(one, Measured)
                left -= 1
                if one.moved:
                    self.mended[Mend.BORDER] += 1
                yield one.pair, one.length

    def _written(self, records: Iterator[Record]) -> Iterator[tuple[Talk, Pair]]:
        for record in records:
            self.read += 1
            found = self._read(record)
            if isinstance(found, Drop):
                self.dropped[found] += 1
            else:
                yield found

    def _read(self, record: Record) -> tuple[Talk, Pair] | Drop:
        talk = self._talk(record)
        if isinstance(talk, Drop):
            return talk
        pair = self._write(talk)
        return pair if isinstance(pair, Drop) else (talk, pair)

    def _talk(self, record: Record) -> Talk | Drop:
        if record.row is None:
            return self._bad(record.where, record.wrong, Drop.NOT_JSON)
        try:
            return self._to_talk(record.row)
        except BadRow as error:
            return self._bad(record.where, str(error), Drop.WRONG_KEYS)

    def _bad(self, where: str, why: str, drop: Drop) -> Drop:
        if not self._options.skip_bad_lines:
            raise Refused([Finding(where, "", why, "correct the line, or leave such lines out with --skip-bad-lines")])
        return drop

    def _write(self, talk: Talk) -> Pair | Drop:
        texts = (talk.system, *talk.turns, talk.chosen, talk.rejected)
        if self._tokenizer and self._tokenizer.has_special(texts):
            return Drop.MARKER
        return self._format.render(talk)

    def _measured(self, batch: list[tuple[Talk, Pair]]) -> Iterator[Measured | Drop]:
        pairs = [pair for _, pair in batch]
        if self._tokenizer is None:
            yield from (Measured(pair, pair.longer_side()) for pair in pairs)
            return
        longest = self._options.max_tokens or sys.maxsize
        for (talk, _), one in zip(batch, self._tokenizer.measure(pairs), strict=True):
            short = isinstance(one, Drop) or one.length <= longest
            yield one if short else self._cut(talk, longest)

    def _cut(self, talk: Talk, longest: int) -> Measured | Drop:
        """With as many of the oldest exchanges cut off as needed; what the human asked last is never cut."""
        assert self._tokenizer is not None
        shorter = talk.later() if self._options.too_long == "cut" else None
        while shorter is not None:
            pair = self._format.render(shorter)
            if isinstance(pair, Drop):
                return pair
            one = self._tokenizer.measure([pair])[0]
            if isinstance(one, Drop) or one.length <= longest:
                self.mended[Mend.CUT] += isinstance(one, Measured)
                return one
            shorter = shorter.later()
        return Drop.TOO_LONG

    def _known(self, pair: Pair) -> Drop | None:
        """Notes the pair; says why it may not stand in the output once more."""
        prompt = pair.prompt_hash()
        if any(prompt in earlier for earlier in self._prompts[:-1]):
            return Drop.OTHER_SPLIT
        if not self._rows.add(pair.row_hash()):
            return Drop.DUPLICATE
        self._prompts[-1].add(prompt)
        return None
