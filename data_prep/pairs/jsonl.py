"""JSON Lines: parses the lines of a source and writes the output files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Record(NamedTuple):
    """One row of a source: where it stands (file:line) and the row, or what is wrong with the line."""

    where: str
    row: Mapping[str, object] | None
    wrong: str = ""


def parse(where: str, line: bytes) -> Record:
    """The row in one line of JSON."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Record(where, None, _not_utf8(line, error.start))
    except json.JSONDecodeError as error:
        return Record(where, None, f"is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets nested 1,000 deep
        return Record(where, None, f"is not JSON that can be read: {error}")
    return checked(where, row)


def checked(where: str, row: object) -> Record:
    """A Record of a parsed value; it has `wrong` if the value is not an object."""
    if not isinstance(row, dict):
        return Record(where, None, f"is not a JSON object but {type(row).__name__}")
    return Record(where, row)


def _not_utf8(line: bytes, at: int) -> str:
    """What is wrong with a line. Files that are not UTF-8 are nearly always Windows-1252, a superset of latin-1."""
    shown = line[max(0, at - 12) : at + 12].decode("cp1252", "replace")
    return f"is not UTF-8 at byte {at} of the line; read as latin-1 it has {shown!r} there: add --encoding latin-1"


class Writer:
    """Writes rows to a .jsonl file and computes their number, bytes and SHA-256."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sha = hashlib.sha256()
        self.rows = 0
        self.bytes = 0

    def write(self, line: bytes) -> None:
        """`line` ends with a newline."""
        self._file.write(line)
        self._sha.update(line)
        self.rows += 1
        self.bytes += len(line)

    def close(self) -> dict[str, int | str]:
        """Flush the file to disk; returns its rows, bytes and SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"rows": self.rows, "bytes": self.bytes, "sha256": self._sha.hexdigest()}


def encode(row: Mapping[str, object]) -> bytes:
    """A row as one line, in ASCII only, so that no reader treats U+2028 and the like as line ends."""
    return json.dumps(row).encode() + b"\n"
