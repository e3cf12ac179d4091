"""A temporary file of pairs that can be assigned to splits only when all of them are known."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from data_prep.pairs import jsonl
from data_prep.pairs.conversation import Pair


class SpillFile:
    """Keeps pairs on the disk until all are known; iterating yields the hashes of their openings."""

    _NUMBERS = struct.Struct("<QI?")

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / ".spill.jsonl", folder / ".spill.numbers")
        self._rows = 0

    def __enter__(self) -> SpillFile:
        self._lines, self._numbers = (path.open("w+b") for path in self._paths)
        return self

    def __exit__(self, *error: object) -> None:
        for file, path in zip((self._lines, self._numbers), self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        return (opening for opening, _, _ in self._read())

    def put(self, pair: Pair, length: int) -> None:
        self._lines.write(jsonl.encode(pair.row()))
        self._numbers.write(self._NUMBERS.pack(pair.opening_hash(), length, pair.rewards is not None))
        self._rows += 1

    def rows(self) -> Iterator[tuple[bytes, int, bool]]:
        """Yields (line, length, whether the source has rewards for it) of each pair."""
        self._lines.seek(0)
        for line, (_, length, rewarded) in zip(self._lines, self._read(), strict=True):
            yield line, length, rewarded

    def _read(self) -> Iterator[tuple[int, int, bool]]:
        self._numbers.flush()
        with self._paths[1].open("rb") as file:  # a separate handle: two readers may be active at once
            while block := file.read(self._NUMBERS.size << 12):
                yield from self._NUMBERS.iter_unpack(block)
