"""HF Llama weights in Megatron-core's layout, written as its `torch_dist` distributed checkpoint, one layer at a time.

Why that format: it is what NeMo 2.1 writes itself, it is read without conversion whatever the tensor and pipeline
parallel sizes (a pickled model_weights.ckpt fits one size only), and it can be written piece by piece, so that no more
than a layer is in memory. It is torch.distributed.checkpoint's: files of torch.save()d pieces and a pickled index.

A layer's tensors are slices of one tensor over all layers (shape [layers, out, in]), as Megatron's own checkpoints have
them. Megatron's fused layers, and how they are cut for tensor parallelism:
- linear_qkv: rows by query group: its queries' heads, its key head, its value head; then the next group;
- linear_fc1: gate rows, then up rows, each cut on its own.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Iterator
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

from data_prep.llama_shape import LlamaShape

#: (HF's name of a weight, first row, end row) -> these rows. What it returns is used and dropped before the next call.
Read = Callable[[str, int, int], torch.Tensor]
_ROWS = 8192  # of an embedding in memory at a time: 64 MiB of Llama-3-8B's 1 GiB in bf16
_LAYERS = "model.decoder.layers."
# Modules whose state dict has an `_extra_state`: Transformer Engine's FP8 scales; Megatron's own layers keep an empty
# one for its sake. Both take None for "no FP8". Which modules ask depends on TE's version: these are all of them, and
# those that are not asked for are passed over (Megatron's StrictHandling.ASSUME_OK_UNEXPECTED, NeMo's default).
_WITH_EXTRA_STATE = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


def fuse_qkv(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int) -> torch.Tensor:
    """[heads*d, h], [groups*d, h], [groups*d, h] -> [(heads + 2*groups)*d, h], rows ordered by query group."""
    hidden = query.shape[1]
    head_dim = key.shape[0] // groups
    parts = [weight.reshape(groups, -1, head_dim, hidden) for weight in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, hidden)


def split_qkv(fused: torch.Tensor, heads: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of fuse_qkv: query, key and value weights of HF's shapes."""
    hidden = fused.shape[1]
    head_dim = fused.shape[0] // (heads + 2 * groups)
    grouped = fused.reshape(groups, heads // groups + 2, head_dim, hidden)
    query, key, value = grouped.split([heads // groups, 1, 1], dim=1)
    return query.reshape(-1, hidden), key.reshape(-1, hidden), value.reshape(-1, hidden)


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
        tensors = [key for key, entry in self._entries.items() if isinstance(entry, TensorStorageMetadata)]
        metadata = Metadata(self._entries, {key: (key,) for key in self._entries}, self._places)
        metadata.mcore_data = {key: {} for key in tensors}  # type: ignore[attr-defined]  # Megatron's own addition
        (self.folder / ".metadata").write_bytes(pickle.dumps(metadata))
        common = io.BytesIO()
        torch.save({}, common)
        (self.folder / "common.pt").write_bytes(common.getvalue())
        backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        backend |= {"common_backend": "torch", "common_backend_version": 1}
        (self.folder / "metadata.json").write_text(json.dumps(backend), encoding="utf-8")


def write_weights(shape: LlamaShape, read: Read, writer: CheckpointWriter, on_layer: Callable[[int], None]) -> None:
    """Write the whole model with what `read` gives; `on_layer` hears of every finished layer."""
    sizes = shape.tensors()

    def whole(key: str, name: str) -> None:
        size = sizes[name]
        for row in range(0, size[0], _ROWS):
            writer.tensor(key, read(name, row, min(row + _ROWS, size[0])), (row, 0)[: len(size)], size)

    with writer.file(0):
        whole("model.embedding.word_embeddings.weight", "model.embed_tokens.weight")
        whole("model.decoder.final_layernorm.weight", "model.norm.weight")
        writer.nothing("model.decoder.final_layernorm._extra_state")
        if not shape.tied:
            whole("model.output_layer.weight", "lm_head.weight")
    for index in range(shape.layers):
        with writer.file(index + 1):
            _write_layer(shape, read, writer, index)
        on_layer(index)
    writer.close()


def _write_layer(shape: LlamaShape, read: Read, writer: CheckpointWriter, index: int) -> None:
    sizes = shape.tensors()

    def of_layer(name: str) -> torch.Tensor:
        name = f"model.layers.{index}.{name}.weight"
        return read(name, 0, sizes[name][0])

    def put(key: str, weight: torch.Tensor, row: int = 0, rows: int | None = None) -> None:
        size = (shape.layers, rows or weight.shape[0], *weight.shape[1:])
        offset = (index, row) + (0,) * (weight.ndim - 1)
        writer.tensor(f"{_LAYERS}{key}", weight.unsqueeze(0), offset, size)

    put("self_attention.linear_qkv.layer_norm_weight", of_layer("input_layernorm"))
    query, key, value = (of_layer(f"self_attn.{name}_proj") for name in "qkv")
    put("self_attention.linear_qkv.weight", fuse_qkv(query, key, value, shape.query_groups))
    put("self_attention.linear_proj.weight", of_layer("self_attn.o_proj"))
    put("mlp.linear_fc1.layer_norm_weight", of_layer("post_attention_layernorm"))
    put("mlp.linear_fc1.weight", of_layer("mlp.gate_proj"), 0, 2 * shape.ffn)
    put("mlp.linear_fc1.weight", of_layer("mlp.up_proj"), shape.ffn, 2 * shape.ffn)
    put("mlp.linear_fc2.weight", of_layer("mlp.down_proj"))
    for module in _WITH_EXTRA_STATE:
        writer.nothing(f"{_LAYERS}{module}._extra_state", index, shape.layers)
