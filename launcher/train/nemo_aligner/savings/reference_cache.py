"""Log-probabilities of the reference policy, kept in files that are found by what they depend on.

A folder, named by a digest of all that the numbers depend on beside the pair itself (`key.json` spells it out), holds
parts: files that are written whole, once, and memory-mapped by everybody who reads them. In a part every pair is found
by a digest of its tokens and labels, which is what the model is given; so another tokenizer, sequence length or row
finds nothing, rather than something wrong. A pair's values are those of its labelled positions, chosen response first,
in fp32; a checksum goes with each pair and with each file's table.

Part: _HEAD (magic, the folder's digest, number of pairs, number of values, checksum of the table), a _ROW a pair
(digest, first value, number of values, checksum of the values), the values. Little-endian. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher import whole_file

_MAGIC = b"dporef1\n"
_HEAD = struct.Struct("<8s16sQQ16s")
_ROW = struct.Struct("<16sQII")
_VALUE = 4  # bytes


class Damaged(ValueError):
    """A file is not what was written. str() says how, in a few words."""


class Part:
    """One file of a cache, mapped into memory. Raises Damaged, or OSError."""

    def __init__(self, path: Path, key: bytes) -> None:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size < _HEAD.size:
                raise Damaged("is cut short")
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        magic, made_for, rows, values, checksum = _HEAD.unpack_from(self._map)
        if magic != _MAGIC:
            raise Damaged("is no file of ours")
        if made_for != key:
            raise Damaged("was made for another model or setting")
        self._start = _HEAD.size + rows * _ROW.size
        if size != self._start + values * _VALUE:
            raise Damaged("is cut short")
        table = self._map[_HEAD.size : self._start]
        if _digest(table) != checksum:
            raise Damaged("has a damaged table")
        self.rows = {row: (first, count, check) for row, first, count, check in _ROW.iter_unpack(table)}

    def values(self, row: bytes) -> memoryview:
        """The fp32 bytes of one pair. Raises Damaged; KeyError where it is not in here."""
        first, count, check = self.rows[row]
        begin = self._start + first * _VALUE
        found = memoryview(self._map)[begin : begin + count * _VALUE]
        if zlib.crc32(found) != check:
            raise Damaged("has damaged values")
        return found


class Cache:
    """All parts for one key; `describe` is what it is a digest of, JSON's types only. Raises OSError."""

    def __init__(self, root: Path, describe: Mapping[str, object]) -> None:
        text = json.dumps(describe, sort_keys=True)
        self.key = _digest(text.encode())
        self.folder = private_folder(root / self.key.hex())
        self.damaged: dict[str, str] = {}
        """Parts that could not be used, and why."""
        self._parts: dict[str, Part] = {}
        self._rows: dict[bytes, str] = {}
        claims = self.folder / "claims"
        claims.mkdir(exist_ok=True)
        if not os.access(claims, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied", str(claims))
        if not (self.folder / "key.json").exists():
            whole_file.write_text(self.folder / "key.json", json.dumps(describe, sort_keys=True, indent=1))

    def refresh(self, names: Iterable[str] | None = None) -> None:
        """Open the parts that others have written since; only of `names`, where a network disk may list old ones."""
        files = self.folder.glob("*.part") if names is None else [self.folder / f"{name}.part" for name in names]
        for path in sorted(files):
            if path.stem in self._parts:
                continue
            try:
                part = Part(path, self.key)
            except FileNotFoundError:  # another one found it damaged, and removed it
                continue
            except Damaged as error:
                self.damaged[path.name] = str(error)
                continue
            self.damaged.pop(path.name, None)
            self._parts[path.stem] = part
            self._rows.update(dict.fromkeys(part.rows, path.stem))

    def names(self) -> list[str]:
        """The parts that were there at the last refresh, and whole."""
        return list(self._parts)

    def has(self, name: str) -> bool:
        """Whether the part `name` was there at the last refresh, and whole."""
        return name in self._parts

    def find(self, row: bytes) -> memoryview | None:
        """The fp32 bytes of a pair; None where it is in no part, or damaged there: such a part is removed."""
        name = self._rows.get(row)
        if name is None:
            return None
        try:
            return self._parts[name].values(row)
        except Damaged as error:
            del self._rows[row]
            path = self.folder / f"{name}.part"
            self.damaged[path.name] = str(error)
            path.unlink(missing_ok=True)
            return None

    def write(self, name: str, rows: Mapping[bytes, bytes]) -> None:
        """Make the part `name`, over a damaged one or one that another has written meanwhile."""
        table, first = [], 0
        for row, values in rows.items():
            table.append(_ROW.pack(row, first, len(values) // _VALUE, zlib.crc32(values)))
            first += len(values) // _VALUE
        joined = b"".join(table)
        head = _HEAD.pack(_MAGIC, self.key, len(rows), first, _digest(joined))
        with whole_file.replacing(self.folder / f"{name}.part") as stream:
            stream.writelines([head, joined, *rows.values()])
        self._parts.pop(name, None)
        self.refresh([name])


def private_folder(path: Path) -> Path:
    """A folder of this user's that no other user can write: `path`, or if that is another user's, `path`-UID beside it.

    Numbers and digests in it are believed, and a checksum is no signature. Raises OSError.
    """
    for folder in (path, path.with_name(f"{path.name}-{os.geteuid()}")):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = folder.lstat()
        if stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid():
            if there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                folder.chmod(0o700)
            return folder
    raise PermissionError(errno.EACCES, "belongs to another user", str(path))


def row_digest(parts: Iterable[bytes]) -> bytes:
    """16 bytes that stand for a pair, from its tokens and labels as bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def group_name(describe: Mapping[str, object]) -> str:
    """A part's name, from what says which pairs are in it."""
    return _digest(json.dumps(describe, sort_keys=True).encode()).hex()


def file_digest(path: Path, notes: Path | None = None) -> str:
    """Of a file's content, or of all files in a folder.

    `notes` is a folder that remembers digests of files by their place, size and time of change: a checkpoint of 16 GB
    takes half a minute to read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path)} {file_digest(file, notes)}\n".encode())
        return digest.hexdigest()
    there = path.stat()
    place = str(path.resolve())
    seen = {"path": place, "bytes": there.st_size, "changed": there.st_mtime_ns, "inode": there.st_ino}
    note = notes / f"{_digest(place.encode()).hex()}.json" if notes else None
    if note is not None and note.exists():
        noted = json.loads(note.read_bytes())
        if noted["of"] == seen:
            return str(noted["digest"])
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        whole_file.write_text(note, json.dumps({"of": seen, "digest": digest.hexdigest()}))
    return digest.hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
