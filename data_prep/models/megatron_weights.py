"""HF Llama weights in Megatron-core's layout, to and from its `torch_dist` distributed checkpoint, layer by layer.

Why that format: NeMo 2.1 writes it itself, it can be loaded with any tensor and pipeline parallel sizes (a pickled
model_weights.ckpt fits one size only), and it can be written piece by piece, so that at most one layer is in memory.

A layer's tensors are slices of one tensor over all layers (shape [layers, out, in]), as in Megatron's own checkpoints.
Megatron's fused layers, and how tensor parallelism splits them:
- linear_qkv: rows by query group: its query heads, its key head, its value head; then the next group;
- linear_fc1: gate rows, then up rows, each split separately.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch

from data_prep.models.llama_shape import LlamaShape
from data_prep.models.torch_dist import LAYERS, CheckpointReader, CheckpointWriter

#: (HF's name of a weight, first row, end row) -> these rows, which are used and freed before the next call.
Read = Callable[[str, int, int], torch.Tensor]
_ROWS = 8192  # of an embedding in memory at a time: 64 MiB of Llama-3-8B's 1 GiB in bf16
# Modules whose state dict has an `_extra_state`: Transformer Engine's FP8 scales; Megatron's own layers have an empty
# one for compatibility. Both accept None for "no FP8". Which modules load one depends on TE's version: these are all of
# them, and unused ones are ignored (Megatron's StrictHandling.ASSUME_OK_UNEXPECTED, NeMo's default).
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


def write_weights(shape: LlamaShape, read: Read, writer: CheckpointWriter, on_layer: Callable[[int], None]) -> None:
    """Write the whole model with the weights that `read` returns; calls `on_layer(index)` after each layer.

    Files that a killed process has finished are skipped.
    """
    sizes = shape.tensors()

    def whole(key: str, name: str) -> None:
        size = sizes[name]
        for row in range(0, size[0], _ROWS):
            writer.tensor(key, read(name, row, min(row + _ROWS, size[0])), (row, 0)[: len(size)], size)

    def outside_layers() -> None:
        whole("model.embedding.word_embeddings.weight", "model.embed_tokens.weight")
        whole("model.decoder.final_layernorm.weight", "model.norm.weight")
        writer.nothing("model.decoder.final_layernorm._extra_state")
        if not shape.tied:
            whole("model.output_layer.weight", "lm_head.weight")

    if not writer.has_file(0):
        with writer.file(0):
            outside_layers()
    for index in range(shape.layers):
        if not writer.has_file(index + 1):
            with writer.file(index + 1):
                _write_layer(shape, read, writer, index)
        on_layer(index)
    writer.close()


def _write_layer(shape: LlamaShape, read: Read, writer: CheckpointWriter, index: int) -> None:
    sizes = shape.tensors()

    def of_layer(name: str) -> torch.Tensor:
        name = f"model.layers.{index}.{name}"
        return read(name, 0, sizes[name][0])

    def put(key: str, weight: torch.Tensor, row: int = 0, rows: int | None = None) -> None:
        size = (shape.layers, rows or weight.shape[0], *weight.shape[1:])
        offset = (index, row) + (0,) * (weight.ndim - 1)
        writer.tensor(f"{LAYERS}{key}", weight.unsqueeze(0), offset, size)

    put("self_attention.linear_qkv.layer_norm_weight", of_layer("input_layernorm.weight"))
    query, key, value = (of_layer(f"self_attn.{name}_proj.weight") for name in "qkv")
    put("self_attention.linear_qkv.weight", fuse_qkv(query, key, value, shape.query_groups))
    if shape.qkv_bias:
        query, key, value = (of_layer(f"self_attn.{name}_proj.bias")[:, None] for name in "qkv")
        put("self_attention.linear_qkv.bias", fuse_qkv(query, key, value, shape.query_groups).squeeze(1))
    put("self_attention.linear_proj.weight", of_layer("self_attn.o_proj.weight"))
    put("mlp.linear_fc1.layer_norm_weight", of_layer("post_attention_layernorm.weight"))
    put("mlp.linear_fc1.weight", of_layer("mlp.gate_proj.weight"), 0, 2 * shape.ffn)
    put("mlp.linear_fc1.weight", of_layer("mlp.up_proj.weight"), shape.ffn, 2 * shape.ffn)
    put("mlp.linear_fc2.weight", of_layer("mlp.down_proj.weight"))
    for module in _WITH_EXTRA_STATE:
        writer.nothing(f"{LAYERS}{module}._extra_state", index, shape.layers)


def read_weights(
    shape: LlamaShape, reader: CheckpointReader, wanted: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The `wanted` HF weights of a checkpoint, in the order of `shape.tensors()`.

    At most one fused matrix is in memory. Layers that have none of these weights are not read.
    """
    if "model.embed_tokens.weight" in wanted:
        yield "model.embed_tokens.weight", _rows(reader, "model.embedding.word_embeddings.weight", shape.vocab)
    for index in range(shape.layers):
        if any(name.startswith(f"model.layers.{index}.") for name in wanted):
            yield from ((name, weight) for name, weight in read_layer(shape, reader, index) if name in wanted)
    if "model.norm.weight" in wanted:
        yield "model.norm.weight", reader.region("model.decoder.final_layernorm.weight", (0,), (shape.hidden,))
    if "lm_head.weight" in wanted:
        yield "lm_head.weight", _rows(reader, "model.output_layer.weight", shape.vocab)


def read_layer(shape: LlamaShape, reader: CheckpointReader, index: int) -> Iterator[tuple[str, torch.Tensor]]:
    """One layer's weights by HF's names, in the order of `shape.tensors()`."""
    sizes = reader.shapes

    def get(key: str, row: int = 0, rows: int | None = None) -> torch.Tensor:
        whole = sizes[f"{LAYERS}{key}"]
        size = (1, rows or whole[1], *whole[2:])
        return reader.region(f"{LAYERS}{key}", (index, row) + (0,) * (len(whole) - 2), size).squeeze(0)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "input_layernorm.weight", get("self_attention.linear_qkv.layer_norm_weight")
        fused = {"weight": get("self_attention.linear_qkv.weight")}
        if shape.qkv_bias:
            fused["bias"] = get("self_attention.linear_qkv.bias")[:, None]
        for kind in list(fused):
            parts = split_qkv(fused.pop(kind), shape.heads, shape.query_groups)
            for name, part in zip("qkv", parts, strict=True):
                yield f"self_attn.{name}_proj.{kind}", part if kind == "weight" else part.squeeze(1)
            del parts, part
        yield "self_attn.o_proj.weight", get("self_attention.linear_proj.weight")
        yield "post_attention_layernorm.weight", get("mlp.linear_fc1.layer_norm_weight")
        yield "mlp.gate_proj.weight", get("mlp.linear_fc1.weight", 0, shape.ffn)
        yield "mlp.up_proj.weight", get("mlp.linear_fc1.weight", shape.ffn, shape.ffn)
        yield "mlp.down_proj.weight", get("mlp.linear_fc2.weight")

    for name, weight in weights():
        yield f"model.layers.{index}.{name}", weight


def _rows(reader: CheckpointReader, key: str, rows: int) -> torch.Tensor:
    """The first `rows` of an embedding, without the rows that Megatron pads a vocabulary with."""
    return reader.region(key, (0, 0), (rows, reader.shapes[key][1]))
