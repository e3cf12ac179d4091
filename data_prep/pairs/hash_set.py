"""A set of 64-bit hashes in a memory-mapped file, 16 to 32 bytes per hash.

The kernel may write its pages back and free them, so a set of any size needs disk space but no memory of its own.
"""

from __future__ import annotations

import mmap
from pathlib import Path

_FIRST = 1 << 14  # places to begin with: 128 kB


class HashSet:
    """A hash table with open addressing, at most half full; 0 marks a free place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._open(_FIRST)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, hash_: int) -> bool:
        return bool(self._table[self._place(hash_ or 1)])

    def add(self, hash_: int) -> bool:
        """Add the hash; returns True if it was not in the set."""
        hash_ = hash_ or 1
        place = self._place(hash_)
        if self._table[place]:
            return False
        self._table[place] = hash_
        self._count += 1
        if 2 * self._count > self._mask:
            self._grow()
        return True

    def close(self) -> None:
        """Close and delete the file."""
        self._table.release()
        self._map.close()
        self._path.unlink(missing_ok=True)

    def _place(self, hash_: int) -> int:
        """The index of the hash, or of the free place where it belongs."""
        table, mask = self._table, self._mask
        place = hash_ & mask
        while table[place] not in (0, hash_):
            place = (place + 1) & mask
        return place

    def _open(self, places: int) -> None:
        self._mask = places - 1
        self._path.unlink(missing_ok=True)
        with self._path.open("w+b") as file:
            file.truncate(8 * places)
            self._map = mmap.mmap(file.fileno(), 8 * places)
        self._table = memoryview(self._map).cast("Q")

    def _grow(self) -> None:
        old_map, old_table = self._map, self._table
        self._open(2 * (self._mask + 1))
        for hash_ in old_table:
            if hash_:
                self._table[self._place(hash_)] = hash_
        old_table.release()
        old_map.close()
