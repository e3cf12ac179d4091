"""Reads rows from a file of any common format; its first bytes show its compression, encoding and layout.

Memory is bounded for any file: a few MB, plus at most MOST_BYTES for one row.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.pairs import json_array, jsonl, tables
from data_prep.pairs.forms import KEYS
from data_prep.pairs.json_array import CHUNK, MOST_BYTES, too_long
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused

KINDS_OF_FILES = "JSON Lines, a JSON array, CSV, TSV, Parquet or Arrow, each also packed with gzip, bzip2, xz or zstd"
ENDS = re.compile(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|feather))(\.(gz|bz2|xz|zst))?$")

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED_ENDS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
#: First bytes of files that hold no data: (what the file is, what to do)
_OTHERS = {
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"version https://git-lfs": ("is a git-lfs pointer, not the file itself", "run `git lfs pull` in its folder"),
    b"<!DOCTYPE": ("is a web page", "download the file itself"),
    b"<html": ("is a web page", "download the file itself"),
}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # last: UTF-32's mark begins like it

#: Called with the share of the file read so far, 0 to 1.
At = Callable[[float], None]


def read(path: Path, at: At | None = None, columns: frozenset[str] = KEYS, encoding: str = "utf-8") -> Iterator[Record]:
    """Yields the rows of a file; for a table, only its `columns`. Raises Refused if the file cannot be read.

    A line that is not a JSON object gives a Record whose `wrong` says why.
    """
    kind = ""
    try:
        with path.open("rb") as raw:
            kind = _compression(raw, path)
            size = max(os.fstat(raw.fileno()).st_size, 1)
            tell = raw.tell
            stream = _unpacked(raw, kind)
            report = (lambda: at(tell() / size)) if at else (lambda: None)
            yield from _rows(stream, path, report, at, columns, encoding)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, kind, error) from error
    except OSError as error:
        if kind and error.errno is None:  # bz2 and zstd raise this for bad data
            raise _damaged(path, kind, error) from error
        raise Refused([Finding(str(path), "", error.strerror or str(error), "give a file that can be read")]) from error


def _damaged(path: Path, kind: str, error: Exception) -> Refused:
    why = f"the {kind or 'gzip'} data is cut off or damaged ({error})"
    return Refused([Finding(str(path), "", why, "copy or download the file again")])


def _compression(raw: BinaryIO, path: Path) -> str:
    start = raw.read(8)
    raw.seek(0)
    kind = next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), "")
    named = _PACKED_ENDS.get(path.suffix, "")
    if named and not kind:
        why = f"is named {path.suffix} but is not {named}"
        raise Refused([Finding(str(path), "", why, "unpack it, or rename it to what it is")])
    return kind


def _unpacked(raw: BinaryIO, kind: str) -> io.BufferedReader:
    if kind == "gzip":
        return io.BufferedReader(cast(Any, gzip.open(raw)), CHUNK)
    if kind == "bzip2":
        return io.BufferedReader(cast(Any, bz2.open(raw)), CHUNK)
    if kind == "xz":
        return io.BufferedReader(cast(Any, lzma.open(raw)), CHUNK)
    if kind == "zstd":
        return io.BufferedReader(cast(Any, tables.zstd(raw)), CHUNK)
    return cast(io.BufferedReader, raw)


def _rows(
    stream: io.BufferedReader, path: Path, report: Callable[[], None], at: At | None, columns: frozenset[str], enc: str
) -> Iterator[Record]:
    start = stream.peek(64)[:64]
    for magic, (what, remedy) in _OTHERS.items():
        if start[:64].lstrip().startswith(magic):
            raise Refused([Finding(str(path), "", what, remedy)])
    if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        yield from _table(stream, path, at, columns)
        return
    enc = next((name for mark, name in _MARKS.items() if start.startswith(mark)), enc)
    if enc.lower().replace("_", "-") not in ("utf-8", "utf8"):
        stream = io.BufferedReader(_AsUTF8(stream, enc, path), CHUNK)
    name = ENDS.search(path.name)
    if name and name[2] in ("csv", "tsv"):
        yield from _csv(stream, path, report, "\t" if name[2] == "tsv" else None)
        return
    start = stream.peek(CHUNK)
    if start.lstrip().startswith(b"["):
        yield from json_array.read(stream, path, report)
    elif name and name[2] == "json" and not _is_row(start):
        yield from json_array.read(stream, path, report, b"{")
    else:
        yield from _lines(stream, path, report)


def _is_row(start: bytes) -> bool:
    """Whether the first line is a whole JSON object with several keys: then the file is JSON Lines, not one object."""
    try:
        row = json.loads(start.partition(b"\n")[0])
    except ValueError:
        return False
    return isinstance(row, dict) and len(row) > 1 and not json_array.rows_of_columns(row)


def _table(stream: io.BufferedReader, path: Path, at: At | None, columns: frozenset[str]) -> Iterator[Record]:
    """Parquet and Arrow readers seek in the file, so a compressed file is unpacked to the disk first."""
    with tempfile.TemporaryFile() as unpacked:
        if isinstance(stream.raw, io.FileIO):
            yield from tables.read_file(cast(BinaryIO, stream), str(path), at, columns)
            return
        while block := stream.read(CHUNK):
            unpacked.write(block)
        unpacked.seek(0)
        yield from tables.read_file(cast(BinaryIO, unpacked), str(path), at, columns)


class _AsUTF8(io.RawIOBase):
    """Converts a stream of another encoding to UTF-8. Raises Refused for bytes that are invalid in that encoding."""

    def __init__(self, stream: io.BufferedReader, encoding: str, path: Path) -> None:
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)()
        except LookupError:
            raise Refused(
                [Finding("--encoding", encoding, "is not an encoding that Python knows", "e.g. latin-1")]
            ) from None
        self._stream, self._encoding, self._path = stream, encoding, path
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = self._stream.read1(CHUNK)
            try:
                self._rest = self._decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                why = f"is not {self._encoding.upper()} ({error.reason})"
                raise Refused([Finding(str(self._path), "", why, "name its encoding with --encoding")]) from error
            if not block:
                break
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _lines(stream: io.BufferedReader, path: Path, report: Callable[[], None]) -> Iterator[Record]:
    number = 0
    try:
        while line := stream.readline(MOST_BYTES + 1):
            number += 1
            if number % 256 == 0:
                report()
            if len(line) > MOST_BYTES:
                raise too_long(path, number)
            if line.strip():
                yield jsonl.parse(f"{path}:{number}", line)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        why = f"the packed data is cut off or damaged ({error})"
        raise Refused([Finding(f"{path}:{number + 1}", "", why, "copy or download the file again")]) from error


def _csv(stream: io.BufferedReader, path: Path, report: Callable[[], None], delimiter: str | None) -> Iterator[Record]:
    header = stream.peek(CHUNK).partition(b"\n")[0]
    delimiter = delimiter or (";" if header.count(b";") > header.count(b",") else ",")
    csv.field_size_limit(MOST_BYTES)
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    reader = csv.DictReader(_bounded(text, path), delimiter=delimiter, strict=True)
    try:
        names = [name for name in reader.fieldnames or () if name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            why = f"has the column {twice[0]!r} more than once"
            raise Refused([Finding(str(path), "", why, "give every column a name of its own")])
        for number, row in enumerate(reader, 1):
            where = f"{path}:{reader.line_num}"
            if number % 256 == 0:
                report()
            if None in row:
                yield Record(where, None, f"has more cells than the header, which has {len(reader.fieldnames or ())}")
            elif any(isinstance(cell, str) and not cell.isascii() and _escaped(cell) for cell in row.values()):
                yield Record(where, None, "is not UTF-8; if it is latin-1, add --encoding latin-1")
            else:
                yield Record(where, row)
    except csv.Error as error:
        raise Refused(
            [Finding(f"{path}:{reader.line_num}", "", f"is not CSV ({error})", "check its quotes")]
        ) from error


def _bounded(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Yields the lines. Raises Refused for a line longer than MOST_BYTES characters."""
    number = 0
    while line := text.readline(MOST_BYTES + 1):
        number += 1
        if len(line) > MOST_BYTES:
            raise too_long(path, number)
        yield line


def _escaped(cell: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in cell)
