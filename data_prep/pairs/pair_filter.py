"""Turns the rows of a source into pairs that NeMo-Aligner can train on; counts dropped rows by reason.

It stores two hashes of each row on the disk (three with --too-long cut), never the text.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from data_prep.pairs import splits
from data_prep.pairs.containers import KINDS_OF_FILES
from data_prep.pairs.conversation import BadRow, Conversation, Drop, Pair, Repair, hash64
from data_prep.pairs.forms import RowReader, UnknownForm
from data_prep.pairs.hash_set import HashSet
from data_prep.pairs.jsonl import Record
from data_prep.pairs.pair_tokens import Measured, PairTokenizer
from data_prep.pairs.preference import RenderedPrompt
from data_prep.pairs.prompt_formats import PromptFormat, texts
from launcher.findings import Finding, Refused

LOOK_AT = 1000  # rows to check after a bad one, to see whether they are bad too
BATCH = 256  # pairs measured at once: enough to keep the tokenizer's threads busy, and a MB or so


@dataclass(frozen=True)
class Options:
    """The options that, with the source, tokenizer and prompt format, determine the output."""

    form: str
    sizes: splits.Sizes
    max_tokens: int | None = None
    too_long: str = "drop"
    limit: int | None = None
    skip_bad_lines: bool = False
    pack: int | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    rejected: str = "first"
    keep_rendered: bool = False
    by_reward: bool = False
    encoding: str = "utf-8"


class PairFilter:
    """Makes pairs from rows and counts dropped rows. It keeps its hash files in `folder`; `close` removes them.

    read + extra = kept + dropped: `extra` counts the further pairs of rows with several rejected responses.
    """

    def __init__(
        self, options: Options, prompt_format: PromptFormat, tokenizer: PairTokenizer | None, folder: Path
    ) -> None:
        self.read = self.extra = 0
        self.dropped: Counter[Drop] = Counter()
        self.repaired: Counter[Repair] = Counter()
        self.rows = RowReader(options.form, options.mapping, options.rejected, options.keep_rendered, options.by_reward)
        self._options = options
        self._format = prompt_format
        self._tokenizer = tokenizer
        self._folder = folder
        self._hashes = HashSet(folder / ".rows")
        self._prompts: list[HashSet] = []  # one per pool so far; the last is the current pool's
        self._openings = HashSet(folder / ".openings") if options.too_long == "cut" else None

    def close(self) -> None:
        for hashes in (self._hashes, *self._prompts, self._openings):
            if hashes is not None:
                hashes.close()

    def kept(self, records: Iterator[Record]) -> Iterator[tuple[Pair, int]]:
        """Yields the kept pairs of one pool in order, each with its length in tokens (characters without a tokenizer).

        Raises Refused for a bad line, unless bad lines are skipped.
        """
        self._prompts.append(HashSet(self._folder / f".prompts{len(self._prompts)}"))
        written = self._written(records)
        left = self._options.limit or sys.maxsize
        # Take no more rows than may still be kept, so that every row read is either kept or counted as dropped.
        while batch := list(islice(written, min(BATCH, left))):
            for measured in self._measured(batch):
                drop = measured if isinstance(measured, Drop) else self._seen_before(measured.pair)
                if drop is not None:
                    self.dropped[drop] += 1
                    continue
                assert isinstance(measured, Measured)
                left -= 1
                if measured.moved:
                    self.repaired[Repair.BORDER] += 1
                rewards = measured.pair.rewards
                if rewards and rewards[0] < rewards[1]:
                    self.repaired[Repair.LOWER_REWARD] += 1
                yield measured.pair, measured.length

    def _written(self, records: Iterator[Record]) -> Iterator[tuple[Conversation, Pair]]:
        for record in records:
            self.read += 1
            try:
                read = self._parse(record)
            except BadRow as error:
                if not self._options.skip_bad_lines:
                    raise self._refusal(record, error, records) from error
                self.dropped[error.drop] += 1
                continue
            self.extra += len(read) - 1
            for conversation in read:
                pair = conversation if isinstance(conversation, Drop) else self._write(conversation)
                if isinstance(pair, Drop):
                    self.dropped[pair] += 1
                else:
                    assert isinstance(conversation, Conversation)
                    yield conversation, pair

    def _parse(self, record: Record) -> list[Conversation | Drop]:
        if record.row is None:
            raise NotJSON(record.wrong)
        return self.rows.read(record.row)

    def _refusal(self, record: Record, error: BadRow, further: Iterator[Record]) -> Refused:
        """The error for a bad row, or for the whole file if this is its first row and the next rows are bad too."""
        looked_at = list(islice(further, LOOK_AT))
        bad = sum(self._is_bad(record) for record in looked_at)
        if self.read > 1 or bad < len(looked_at):
            more = f" (as are {bad} of the next {len(looked_at)} rows)" if bad else ""
            remedy = "correct the line, or leave such lines out with --skip-bad-lines"
            if isinstance(error, RenderedPrompt):
                remedy = error.remedy
            return Refused([Finding(record.where, "", f"{error}{more}", remedy)])
        file = re.sub(r"(:|, row )\d+$", "", record.where)
        why = f"none of the first {bad + 1} rows is a pair: {error}"
        if isinstance(error, UnknownForm):
            assert record.row is not None
            why += f"; the keys are {', '.join(map(str, record.row))}"
        return Refused([Finding(file, "", why, error.remedy)])

    def _is_bad(self, record: Record) -> bool:
        try:
            self._parse(record)
        except BadRow:
            return True
        return False

    def _write(self, conversation: Conversation) -> Pair | Drop:
        if conversation.rendered:
            assert conversation.text is not None
            chosen, rejected = conversation.chosen, conversation.rejected
            return Pair(conversation.text, chosen, rejected, conversation.turns[0], conversation.rewards)
        if self._tokenizer and self._tokenizer.has_special(texts(conversation)):
            return Drop.MARKER
        return self._format.render(conversation)

    def _measured(self, batch: list[tuple[Conversation, Pair]]) -> Iterator[Measured | Drop]:
        pairs = [pair for _, pair in batch]
        if self._tokenizer is None:
            yield from (Measured(pair, pair.longer_side()) for pair in pairs)
            return
        longest = self._options.max_tokens or sys.maxsize
        for (conversation, _), measured in zip(batch, self._tokenizer.measure(pairs), strict=True):
            short = isinstance(measured, Drop) or measured.length <= longest
            yield measured if short else self._cut(conversation, longest)

    def _cut(self, conversation: Conversation, longest: int) -> Measured | Drop:
        """Cuts off as many of the oldest exchanges as needed; the human's last question is never cut."""
        assert self._tokenizer is not None
        shorter = conversation.without_oldest_exchange() if self._options.too_long == "cut" else None
        while shorter is not None:
            pair = self._format.render(shorter)
            if isinstance(pair, Drop):
                return pair
            measured = self._tokenizer.measure([pair])[0]
            if isinstance(measured, Drop):
                return measured
            if measured.length <= longest:
                self.repaired[Repair.CUT] += 1
                # The split follows from the opening: with the one that was cut off it is that of the earlier stages.
                return measured._replace(pair=measured.pair._replace(opening=conversation.turns[0]))
            shorter = shorter.without_oldest_exchange()
        return Drop.TOO_LONG

    def _seen_before(self, pair: Pair) -> Drop | None:
        """Remembers the pair; returns the reason to drop it if it, or its prompt in another split, was seen before."""
        prompt = pair.prompt_hash()
        if any(prompt in earlier for earlier in self._prompts[:-1]):
            return Drop.OTHER_SPLIT
        if self._openings is not None:  # what is left of two conversations may be the same prompt
            opening = hash64(str(prompt), str(pair.opening_hash()))
            if prompt in self._prompts[-1] and opening not in self._openings:
                return Drop.OTHER_SPLIT
            self._openings.add(opening)
        if not self._hashes.add(pair.row_hash()):
            return Drop.DUPLICATE
        self._prompts[-1].add(prompt)
        return None


class NotJSON(BadRow):
    """A line that holds no row at all."""

    drop = Drop.NOT_JSON

    def __init__(self, why: str) -> None:
        super().__init__(why, "" if "--encoding" in why else f"give {KINDS_OF_FILES}")
