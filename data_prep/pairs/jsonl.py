"""JSON Lines, plain or gzip, read and written a line at a time."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.findings import Finding, Refused

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Record:
    """One row of a source: where it stands (file:line) and the row, or what is wrong with the line."""

    where: str
    row: Mapping[str, object] | None
    wrong: str = ""


def read(path: Path, at: Callable[[float], None] | None = None) -> Iterator[Record]:
    """The lines of a .jsonl or .jsonl.gz, blank ones left out. `at` is told the share of the file that was read.

    A line that is not a JSON object comes as a Record with `wrong`; a file that cannot be read raises Refused.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            size = max(os.fstat(raw.fileno()).st_size, 1)
            for number, line in enumerate(_unpacked(raw, path), 1):
                if at and number % 256 == 0:
                    at(raw.tell() / size)
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that Windows editors write
                if line.strip():
                    yield _record(f"{path}:{number}", line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        why = f"the gzip data is cut off or damaged ({error})"
        raise Refused([Finding(f"{path}:{number + 1}", "", why, "copy or download the file again")]) from error
    except OSError as error:
        raise Refused([Finding(str(path), "", error.strerror or str(error), "give a file that can be read")]) from error


def _unpacked(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of the file, unpacked where its first bytes are gzip's, whatever its name."""
    magic = raw.read(2)
    raw.seek(0)
    if magic == _GZIP_MAGIC:
        with gzip.open(raw) as lines:
            yield from lines
    elif path.suffix == ".gz":
        raise Refused([Finding(str(path), "", "is named .gz but is not gzip", "unpack it or rename it to .jsonl")])
    else:
        yield from raw


def _record(where: str, line: bytes) -> Record:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Record(where, None, f"is not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Record(where, None, f"is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits; brackets nested 1,000 deep
        return Record(where, None, f"is not JSON that can be read: {error}")
    if not isinstance(row, dict):
        return Record(where, None, f"is not a JSON object but {type(row).__name__}")
    return Record(where, row)


class Writer:
    """Writes rows to a .jsonl and keeps count, bytes and SHA-256 of what it wrote."""

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
        """Puts the file on the disk and says what is in it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"rows": self.rows, "bytes": self.bytes, "sha256": self._sha.hexdigest()}


def encode(row: Mapping[str, object]) -> bytes:
    """A row as one line. Only ASCII, so that U+2028 and the like break lines for no reader."""
    return json.dumps(row).encode() + b"\n"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
