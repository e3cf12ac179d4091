"""Reads pickles of checkpoints without running their code: a pickle is a program, and anyone may have written it."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint.metadata import Metadata

#: The classes in the index of a torch_dist checkpoint.
_INDEX = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
}
_INDEX |= {("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch.serialization", "_get_layout")}
_INDEX |= {("torch", "Size"), ("collections", "OrderedDict"), ("pathlib", "PosixPath"), ("builtins", "set")}

#: The classes of which tensors are made.
_TENSORS = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"), ("torch", "Size")}
_TENSORS |= {("collections", "OrderedDict"), ("torch", "device")}


def load_index(data: bytes) -> Metadata:
    """The index of a checkpoint. Raises pickle.UnpicklingError if it refers to any other class."""
    return cast("Metadata", _IndexUnpickler(io.BytesIO(data)).load())


def _is_dtype_or_storage(module: str, name: str) -> bool:
    value = getattr(torch, name, None) if module == "torch" else None
    return isinstance(value, torch.dtype) or (isinstance(value, type) and name.endswith("Storage"))


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _INDEX or _is_dtype_or_storage(module, name):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which an index of a checkpoint never does")


class Placeholder:
    """Stands for an object of a class that is not read: it accepts whatever a pickle does with it, and ignores it."""

    def __new__(cls, *args: object, **kwargs: object) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...
    def __call__(self, *args: object, **kwargs: object) -> Placeholder:
        return self


class Unpickler(pickle.Unpickler):
    """For torch.load(..., pickle_module=safe_pickle): tensors are read, all else becomes a Placeholder."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _TENSORS or _is_dtype_or_storage(module, name):
            return super().find_class(module, name)
        return Placeholder


def load(file: BinaryIO, **options: Any) -> object:
    """torch.load calls this for the parts of older files."""
    return Unpickler(file, **options).load()
