"""Megatron's `torch_dist` checkpoints, written and read piece by piece, so that at most one piece is in memory.

The format is torch.distributed.checkpoint's: files of torch.save()d pieces, and a pickled index with the pieces of each
tensor and where they are. A checkpoint can be read in a folder or inside an uncompressed tar (a .nemo), without
unpacking.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from data_prep.models import safe_pickle
from data_prep.models.nemo_writer import NemoWriter
from launcher.findings import Finding, Refused
from launcher.nemo import nemo_file

INDEX = ".metadata"
LAYERS = "model.decoder.layers."
_BLOCK = 16 << 20


class CheckpointWriter:
    """Writes the weights of a .nemo as a `torch_dist` checkpoint, piece by piece; it can be read only after close().

    `dtype` is the type in which every tensor is stored. Files that a killed process finished are kept, see `has_file`.
    """

    def __init__(self, nemo: NemoWriter, dtype: torch.dtype) -> None:
        self._nemo, self.dtype = nemo, dtype
        self._metadata = Metadata({}, {}, {})
        self._pieces: list[_Piece] = []
        self._file = ""
        self._begin = 0
        self._stream: BinaryIO | None = None

    def has_file(self, number: int) -> bool:
        """Whether file `number` was finished by a killed process; the index then lists its content."""
        file = _file_name(number)
        holds = self._nemo.holds(file)
        for piece in holds["pieces"] if holds else []:
            self._add_to_index(_Piece(*piece), file)
        return holds is not None

    @contextmanager
    def file(self, number: int) -> Iterator[None]:
        """Everything written while the block runs goes to one file."""
        self._file, self._pieces = _file_name(number), []
        with self._nemo.file(f"{nemo_file.WEIGHTS}/{self._file}") as self._stream:
            self._begin = self._stream.tell()
            yield
        self._nemo.finish(self._file, {"pieces": self._pieces})

    def tensor(self, key: str, piece: torch.Tensor, offset: tuple[int, ...], size: tuple[int, ...]) -> None:
        """Store `piece` as the part of tensor `key` (of shape `size`) that begins at `offset`."""
        # A copy: torch.save writes the whole storage of a view, and a safetensors tensor is a view of its file.
        stored = piece.to(self.dtype, copy=True, memory_format=torch.contiguous_format)
        start, length = self._write(stored)
        self._add(_Piece(key, start, length, offset, tuple(piece.shape), size))

    def nothing(self, key: str, index: int = 0, count: int = 1) -> None:
        """Store None as object `key`, part `index` of `count` (named as Megatron's ShardedObject.unique_key)."""
        self._add(_Piece(f"{key}/shard_{index}_{count}", *self._write([None])))  # in a list, as Megatron stores objects

    def _write(self, value: torch.Tensor | list[None]) -> tuple[int, int]:
        """(offset in the file, number of bytes)."""
        stream = self._stream
        assert stream is not None
        start = stream.tell()
        torch.save(value, stream)
        return start - self._begin, stream.tell() - start

    def _add(self, piece: _Piece) -> None:
        self._pieces.append(piece)
        self._add_to_index(piece, self._file)

    def _add_to_index(self, piece: _Piece, file: str) -> None:
        entries = self._metadata.state_dict_metadata
        key = sys.intern(piece.key)  # one object a key, so that the pickled index has the same bytes after a kill
        if piece.size is None:
            entries[key] = BytesStorageMetadata()
            index = MetadataIndex(key)
        else:
            whole = TensorStorageMetadata(TensorProperties(dtype=self.dtype), torch.Size(piece.size), [])
            entry = entries.setdefault(key, whole)
            assert isinstance(entry, TensorStorageMetadata)
            index = MetadataIndex(key, torch.Size(piece.offset), len(entry.chunks))
            entry.chunks.append(ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.shape)))
        self._metadata.storage_data[index] = _StorageInfo(file, piece.start, piece.length)

    def close(self) -> None:
        """Write the index. metadata.json is written last, because Megatron reads it first."""
        self._metadata.planner_data = {key: (key,) for key in self._metadata.state_dict_metadata}
        for name, content in _index_files(self._metadata).items():
            with self._nemo.file(f"{nemo_file.WEIGHTS}/{name}") as stream:
                stream.write(content)


class _Piece(NamedTuple):
    """What the index says of a piece; an object other than a tensor has no size."""

    key: str
    start: int
    length: int
    offset: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    size: tuple[int, ...] | None = None


def _file_name(number: int) -> str:
    return f"__0_{number}.distcp"


def _index_files(metadata: Metadata) -> dict[str, bytes]:
    """The files beside those with the pieces: name -> content."""
    tensors = [key for key, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)]
    metadata.mcore_data = {key: {} for key in tensors}  # type: ignore[attr-defined]  # Megatron's own addition
    common = io.BytesIO()
    torch.save({}, common)
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backend |= {"common_backend": "torch", "common_backend_version": 1}
    return {
        INDEX: pickle.dumps(metadata),
        "common.pt": common.getvalue(),
        "metadata.json": json.dumps(backend).encode(),
    }


class CheckpointReader:
    """Reads regions of the tensors in a .nemo's checkpoint; `nemo` is the file, or the folder it was unpacked to.

    Raises Refused if it contains another kind of checkpoint (zarr, or pickled weights of one parallel size).
    """

    def __init__(self, nemo: Path) -> None:
        self.nemo = nemo
        self._places = _places(nemo)
        if INDEX not in self._places:
            why = f"contains no distributed checkpoint ({nemo_file.WEIGHTS}/{INDEX} of torch_dist)"
            remedy = (
                "save it with model.dist_ckpt_format=torch_dist, or convert it with data_prep/convert_checkpoint.py"
            )
            raise Refused([Finding(str(nemo), "", why, remedy)])
        try:
            self._index: Metadata = safe_pickle.load_index(self._bytes(INDEX))
        except (pickle.UnpicklingError, EOFError, AttributeError) as error:
            why = f"the index of its weights cannot be read ({error})"
            raise Refused(
                [Finding(str(nemo), "", why, "use a file that NeMo or convert_checkpoint.py wrote")]
            ) from None
        self._storage = self._index.storage_data
        entries = self._index.state_dict_metadata.items()
        self._entries = {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(entry.size) for key, entry in self._entries.items()}

    def dtype(self, key: str) -> torch.dtype:
        dtype: torch.dtype = self._entries[key].properties.dtype
        return dtype

    def region(self, key: str, offset: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        """The part of tensor `key` that begins at `offset` and has shape `size`, assembled from its pieces."""
        region = torch.empty(tuple(size), dtype=self.dtype(key))
        filled = 0
        for chunk in self._entries[key].chunks:
            ends = [a + b for a, b in zip(chunk.offsets, chunk.sizes, strict=True)]
            first = [max(a, b) for a, b in zip(offset, chunk.offsets, strict=True)]
            last = [min(a + n, b) for a, n, b in zip(offset, size, ends, strict=True)]
            if any(a >= b for a, b in zip(first, last, strict=True)):
                continue
            into = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, offset, strict=True))
            out_of = tuple(slice(a - o, b - o) for a, b, o in zip(first, last, chunk.offsets, strict=True))
            part = self._piece(key, chunk)[out_of]
            region[into] = part
            filled += part.numel()
        if filled != region.numel():
            why = f"{key} has {filled} of {region.numel()} values at {tuple(offset)}"
            raise Refused([Finding(str(self.nemo), "", why, "convert the model again")])
        return region

    @contextmanager
    def layer_folder(self, index: int, parent: Path) -> Iterator[Path]:
        """Layer `index` as the checkpoint of a one-layer model, in a folder in `parent` that exists while the block
        runs. Megatron can load it, and only the files with that layer are unpacked."""
        part = Metadata({}, {}, {})
        files = set()
        for key, entry in self._index.state_dict_metadata.items():
            if not key.startswith(LAYERS):
                continue
            if isinstance(entry, BytesStorageMetadata):
                name, _, shard = key.rpartition("/shard_")
                if int(shard.split("_")[0]) == index:
                    part.state_dict_metadata[f"{name}/shard_0_1"] = entry
                    part.storage_data[MetadataIndex(f"{name}/shard_0_1")] = self._storage[MetadataIndex(key)]
                continue
            chunks: list[ChunkStorageMetadata] = []
            for chunk in entry.chunks:
                if chunk.offsets[0] == index:
                    first = torch.Size([0, *chunk.offsets[1:]])
                    place = self._storage[MetadataIndex(key, chunk.offsets)]
                    part.storage_data[MetadataIndex(key, first, len(chunks))] = place
                    chunks.append(ChunkStorageMetadata(first, chunk.sizes))
                    files.add(place.relative_path)
            size = torch.Size([1, *entry.size[1:]])
            part.state_dict_metadata[key] = TensorStorageMetadata(entry.properties, size, chunks)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            for name in files:
                self._copy(name, Path(folder, name))
            for name, content in _index_files(part).items():
                Path(folder, name).write_bytes(content)
            yield Path(folder)

    def _copy(self, name: str, to: Path) -> None:
        path, start, left = self._places[name]
        with path.open("rb") as source, to.open("wb") as target:
            source.seek(start)
            while left:
                left -= target.write(source.read(min(left, _BLOCK)))

    def _piece(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        place = self._storage[MetadataIndex(key, chunk.offsets)]
        data = self._bytes(place.relative_path, place.offset, place.length)
        loaded: torch.Tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return loaded

    def _bytes(self, name: str, first: int = 0, length: int | None = None) -> bytes:
        path, start, size = self._places[name]
        with path.open("rb") as file:
            file.seek(start + first)
            return file.read(size - first if length is None else length)


def _places(nemo: Path) -> dict[str, tuple[Path, int, int]]:
    """Each checkpoint file's (file, offset of its first byte there, bytes), by its name."""
    folder = nemo / nemo_file.WEIGHTS
    if nemo.is_dir():
        return {path.name: (path, 0, path.stat().st_size) for path in folder.iterdir()} if folder.is_dir() else {}
    places = {}
    try:
        with tarfile.open(nemo, "r:") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if parent == nemo_file.WEIGHTS and member.isfile():
                    places[name] = (nemo, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise Refused(
            [Finding(str(nemo), "", f"is not a readable .nemo ({error})", "name an uncompressed file")]
        ) from None
    return places
