"""Reads the objects of a long JSON text one by one, in bounded memory."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.pairs import jsonl
from data_prep.pairs.forms import KEYS
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused

MOST_BYTES = 64 << 20  # of one row
CHUNK = 1 << 20  # read at once


def too_long(path: Path, number: int) -> Refused:
    why = f"the row is longer than {MOST_BYTES >> 20} MiB"
    return Refused([Finding(f"{path}:{number}", "", why, "check that it is the right file, with one row per line")])


def read(stream: io.BufferedReader, path: Path, report: Callable[[], None], first: bytes = b"[") -> Iterator[Record]:
    """Yields the objects of a JSON array one by one; the whole array is never in memory. With `first` b"{" the text is
    an object that holds the array, or a sequence of objects that may span lines. Raises Refused."""
    elements = _Elements(stream, path)
    closing = elements.take("[") if first == b"[" else elements.skip_to_array()
    number = 0
    while not elements.at_end(closing):
        number += 1
        if number % 256 == 0:
            report()
        value = elements.next_value(number)
        if number == 1 and (rows := rows_of_columns(value)) and elements.at_end(closing):
            yield from (jsonl.Record(f"{path}, row {place}", row) for place, row in enumerate(rows, 1))
            return
        yield jsonl.checked(f"{path}, row {number}", value)


def rows_of_columns(value: object) -> list[dict[str, object]]:
    """The rows of a file that is one object of columns: {"prompt": [...], ...}, or pandas' {"prompt": {"0": ...}, ...}.

    A conversation is a list as well, but one of objects.
    """
    columns = list(value.values()) if isinstance(value, dict) else []
    if len(columns) > 1 and all(isinstance(it, dict) and all(map(str.isdigit, it)) for it in columns):
        same = len({tuple(it) for it in columns}) == 1
        columns = [list(it.values()) for it in columns] if same else []
    elif not all(isinstance(it, list) and not any(isinstance(entry, dict) for entry in it) for it in columns):
        return []
    if len(columns) < 2 or len({len(it) for it in columns}) != 1 or len(columns[0]) < 2:
        return []
    assert isinstance(value, dict)
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


class _Elements:
    """A window that moves over a long JSON text and returns its values one by one."""

    _BLANKS = re.compile(r"\s*")
    _KEY = re.compile(r'\s*[{,]\s*"((?:[^"\\]|\\.)*)"\s*:\s*')

    def __init__(self, stream: io.BufferedReader, path: Path) -> None:
        self._stream, self._path = stream, path
        self._decode = json.JSONDecoder().raw_decode
        self._bytes = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._over = "", 0, False

    def _more(self, size: int = CHUNK) -> bool:
        """Read the next block; returns False at the end of the file."""
        if self._over:
            return False
        block = self._stream.read(size)
        self._over = len(block) < size
        try:
            self._text = self._text[self._at :] + self._bytes.decode(block, final=self._over)
        except UnicodeDecodeError as error:
            why = "is not UTF-8"
            raise Refused([Finding(str(self._path), "", why, "if it is latin-1, add --encoding latin-1")]) from error
        self._at = 0
        return True

    def _peek(self) -> str:
        """The next character that is not whitespace; "" at the end."""
        while True:
            if (blanks := self._BLANKS.match(self._text, self._at)) is not None:
                self._at = blanks.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        if self._peek() == character:
            self._at += 1
            return True
        return False

    def skip_to_array(self) -> bool:
        """Whether the text is an object with the rows in an array under some key; if so, moves to the first row."""
        self._peek()
        at = self._at
        while match := self._KEY.match(self._text, at):
            at = match.end()
            if self._text[at : at + 1] == "[" and match[1] not in KEYS:
                self._at = at + 1
                return True
            try:
                _, at = self._decode(self._text, at)
            except ValueError:
                return False
        return False

    def at_end(self, closing: bool) -> bool:
        """Whether there are no more values; skips the comma before the next value."""
        self.take(",")
        after = self._peek()
        if closing and not after:
            raise Refused([Finding(str(self._path), "", "the JSON array does not end", "copy the file again")])
        return not after or (closing and after == "]")

    def next_value(self, number: int) -> object:
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                if end < len(self._text) or self._over:
                    self._at = end
                    return value
                problem = "cut off"
            except (ValueError, RecursionError) as error:
                problem = str(error)
            if len(self._text) - self._at > MOST_BYTES:
                raise too_long(self._path, number)
            if not self._more(size):
                why = f"is not JSON ({problem})"
                raise Refused([Finding(f"{self._path}, row {number}", "", why, "correct the file")])
            size *= 2
