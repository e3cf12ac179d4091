"""Megatron's `torch_dist` checkpoints, written and read piece by piece, so that no more than a piece is in memory.

The format is torch.distributed.checkpoint's: files of torch.save()d pieces, and a pickled index that says of every
tensor which pieces it has and where they lie. A checkpoint is read in a folder or inside an uncompressed tar (a .nemo)
alike, without unpacking.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
from launcher.findings import Finding, Refused
from launcher.nemo import nemo_file

INDEX = ".metadata"
LAYERS = "model.decoder.layers."
_BLOCK = 16 << 20


class CheckpointWriter:
    """Writes a `torch_dist` folder piece by piece; it can be read only after close().

    `dtype` is what every tensor is stored in.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        folder.mkdir(parents=True)
        self._entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}
        self._stream: BinaryIO | None = None

    @contextmanager
    def file(self, number: int) -> Iterator[None]:
        """Everything written inside goes to one file."""
        with (self.folder / f"__0_{number}.distcp").open("wb") as self._stream:
            yield

    def tensor(self, key: str, piece: torch.Tensor, offset: tuple[int, ...], size: tuple[int, ...]) -> None:
        """Store `piece` as the part of tensor `key` (whole shape `size`) that begins at `offset`."""
        entry = self._entries.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=self.dtype), torch.Size(size), [])
        )
        assert isinstance(entry, TensorStorageMetadata)
        index = MetadataIndex(key, torch.Size(offset), len(entry.chunks))
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offset), piece.shape))
        # A copy: torch.save writes the whole storage of a view, and a safetensors tensor is a view of its file.
        self._write(index, piece.to(self.dtype, copy=True, memory_format=torch.contiguous_format))

    def nothing(self, key: str, index: int = 0, count: int = 1) -> None:
        """Store None as object `key`, part `index` of `count` (named as Megatron's ShardedObject.unique_key)."""
        name = f"{key}/shard_{index}_{count}"
        self._entries[name] = BytesStorageMetadata()
        self._write(MetadataIndex(name), [None])  # in a list, as Megatron stores objects

    def _write(self, index: MetadataIndex, value: torch.Tensor | list[None]) -> None:
        stream = self._stream
        assert stream is not None
        start = stream.tell()
        torch.save(value, stream)
        self._places[index] = _StorageInfo(Path(stream.name).name, start, stream.tell() - start)

    def close(self) -> None:
        """Write the index. Megatron reads metadata.json first, so that comes last."""
        _write_index(self.folder, Metadata(self._entries, {key: (key,) for key in self._entries}, self._places))


def _write_index(folder: Path, metadata: Metadata) -> None:
    tensors = [key for key, entry in metadata.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)]
    metadata.mcore_data = {key: {} for key in tensors}  # type: ignore[attr-defined]  # Megatron's own addition
    (folder / INDEX).write_bytes(pickle.dumps(metadata))
    common = io.BytesIO()
    torch.save({}, common)
    (folder / "common.pt").write_bytes(common.getvalue())
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    backend |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backend), encoding="utf-8")


class CheckpointReader:
    """Reads regions of the tensors of a .nemo's checkpoint; `nemo` is the file, or the folder it was unpacked to.

    Raises Refused where there is no such checkpoint in it (zarr, and pickled weights of one parallel size, are others).
    """

    def __init__(self, nemo: Path) -> None:
        self.nemo = nemo
        self._places = _places(nemo)
        if INDEX not in self._places:
            why = f"holds no distributed checkpoint ({nemo_file.WEIGHTS}/{INDEX} of torch_dist)"
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
        found: torch.dtype = self._entries[key].properties.dtype
        return found

    def region(self, key: str, offset: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        """The part of tensor `key` that begins at `offset` and has shape `size`, put together from its pieces."""
        found = torch.empty(tuple(size), dtype=self.dtype(key))
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
            found[into] = part
            filled += part.numel()
        if filled != found.numel():
            why = f"{key} has {filled} of {found.numel()} values at {tuple(offset)}"
            raise Refused([Finding(str(self.nemo), "", why, "convert the model again")])
        return found

    @contextmanager
    def layer_folder(self, index: int, parent: Path) -> Iterator[Path]:
        """Layer `index` as the checkpoint of a model that has no other layer, in a folder in `parent`, while the block
        runs: for Megatron's own loading, without unpacking more than the files that hold the layer."""
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
            _write_index(Path(folder), part)
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
    found = {}
    try:
        with tarfile.open(nemo, "r:") as archive:
            for member in archive:
                parent, _, name = member.name.removeprefix("./").rpartition("/")
                if parent == nemo_file.WEIGHTS and member.isfile():
                    found[name] = (nemo, member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise Refused([Finding(str(nemo), "", f"is no readable .nemo ({error})", "name an uncompressed one")]) from None
    return found
