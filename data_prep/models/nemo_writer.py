"""Writes a .nemo, as one file or as a folder, file after file, and continues where a killed process stopped.

The file is an uncompressed tar, as NeMo's own are. Its members are written in place, so that a model's bytes are
written once, and never needs its disk space twice.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.unfinished import Journal

_BLOCK = tarfile.BLOCKSIZE


class NemoWriter:
    """Writes into `path`: a tar if `packed`, else a folder.

    Owner and times are left out of a tar, so the same content gives the same bytes.
    """

    def __init__(self, path: Path, packed: bool, journal: Journal) -> None:
        self.path, self._packed, self._journal = path, packed, journal
        self._end = 0
        self._written: list[Path] = []
        if packed:
            self._end = journal.parts[-1]["end"] if journal.parts else 0
            with path.open("ab") as stream:
                stream.truncate(self._end)
        else:
            path.mkdir(exist_ok=True)

    def holds(self, part: str) -> dict[str, list[Any]] | None:
        """What `finish` was given with this part, by this process or a killed one; None for a part yet to be made."""
        return next((entry["holds"] for entry in self._journal.parts if entry["part"] == part), None)

    def add_folder(self, name: str) -> None:
        if not self._packed:
            (self.path / name).mkdir(exist_ok=True)
            return
        with self.path.open("r+b") as stream:
            stream.seek(self._end)
            stream.write(_header(name, 0, tarfile.DIRTYPE))
            self._end = stream.tell()

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """A stream for the content of the file `name`; in a tar its position at the start is not 0."""
        if not self._packed:
            with (self.path / name).open("wb") as stream:
                yield stream
            self._written.append(self.path / name)
            return
        with self.path.open("r+b") as stream:
            begin = self._end + _BLOCK
            stream.seek(begin)
            yield stream
            size = stream.tell() - begin
            stream.write(bytes(-size % _BLOCK))
            end = stream.tell()
            stream.seek(self._end)
            stream.write(_header(name, size, tarfile.REGTYPE))
        self._end = end

    def finish(self, part: str, holds: dict[str, list[Any]]) -> None:
        """Note that the files written since the last call are whole: they are part `part`, described by `holds`."""
        for path in [self.path] if self._packed else self._written:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._written = []
        self._journal.add({"part": part, "end": self._end, "holds": holds})

    def copy(self, source: Path, name: str) -> None:
        with source.open("rb") as original, self.file(name) as stream:
            shutil.copyfileobj(original, stream)

    def close(self) -> None:
        if self._packed:
            with self.path.open("r+b") as stream:
                end = self._end + 2 * _BLOCK  # two blocks of zeros are a tar's end
                stream.truncate(end + -end % tarfile.RECORDSIZE)


def _header(name: str, size: int, kind: bytes) -> bytes:
    entry = tarfile.TarInfo(f"./{name}")
    entry.size, entry.type = size, kind
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)  # one block, also for a size above 8 GiB
