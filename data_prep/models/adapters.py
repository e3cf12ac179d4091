"""A trial's LoRA weights as NeMo saved them, split into a pair of matrices per projection, as in Hugging Face's peft.

NeMo adapts Megatron's fused matrices, W x + (alpha / rank) B (A x), with one A for all fused projections. Each row of
the fused B belongs to one projection, so each projection gets its rows of B and a copy of A; rank and alpha do not
change. A tensor-parallel rank has only its part: rows of A (columns, if the layer's input is split) and rows of B.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from data_prep.models import safe_pickle
from data_prep.models.llama_shape import LlamaShape
from data_prep.models.megatron_weights import split_qkv
from data_prep.models.nemo_to_hf import shape_of
from launcher.findings import Finding, Refused
from launcher.nemo import lora, nemo_file
from launcher.nemo.gpt_config import GptConfig
from launcher.nemo.lora import FUSED

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, inputs], B [outputs, rank]."""

_NAMES = {
    "self_attention.adapter_layer.lora_kqv_adapter": "attention_qkv",
    "self_attention.adapter_layer.lora_dense_attention_adapter": "attention_dense",
    "mlp.adapter_layer.lora_hto4h_adapter": "mlp_fc1",
    "mlp.adapter_layer.lora_4htoh_adapter": "mlp_fc2",
}
_INPUT_SPLIT = ("attention_dense", "mlp_fc2")  # row-parallel layers, whose input tensor parallelism splits
_KEY = re.compile(r"(?:model\.)?(?:module\.)?decoder\.layers\.(\d+)\.([\w.]+)\.(linear_in|linear_out)\.weight")
_RANK = re.compile(r"(?:mp_rank_(?P<mp>\d+)|tp_rank_(?P<tp>\d+)_pp_rank_(?P<pp>\d+))/")
_BLOCK = {"attention_qkv": "self_attn", "attention_dense": "self_attn", "mlp_fc1": "mlp", "mlp_fc2": "mlp"}

_State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Adapters:
    """The LoRA of a trial, joined from all its ranks."""

    shape: LlamaShape
    """The shape of the base model, with a vocabulary of 0: it is not known here."""
    rank: int
    alpha: float
    dropout: float
    fused: dict[tuple[int, str], Pair]
    """(layer, NeMo's module) -> matrices."""

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.fused.values()))[0].dtype

    @property
    def layers(self) -> list[int]:
        return sorted({layer for layer, _ in self.fused})

    @property
    def modules(self) -> list[str]:
        """HF's names of the adapted projections: q_proj, ..."""
        present = {module for _, module in self.fused}
        return [name for module, names in FUSED.items() if module in present for name in names]

    def pairs(self) -> Iterator[tuple[str, Pair]]:
        """(HF's module such as `model.layers.0.self_attn.q_proj`, its A and B)."""
        for layer, module in sorted(self.fused, key=lambda it: (it[0], list(FUSED).index(it[1]))):
            into, out = self.fused[layer, module]
            for name, rows in zip(FUSED[module], self._split(module, out), strict=True):
                yield f"model.layers.{layer}.{_BLOCK[module]}.{name}", (into, rows)

    def _split(self, module: str, out: torch.Tensor) -> Sequence[torch.Tensor]:
        if module == "attention_qkv":
            return split_qkv(out, self.shape.heads, self.shape.query_groups)
        return out.chunk(len(FUSED[module]))


def read(path: Path, config: dict[str, Any] | None = None) -> Adapters:
    """The adapters in `path`: the .nemo written at the end of training, or a checkpoint (the .ckpt of any rank).

    `config` is the base model's model_config.yaml with the trial's `model` laid over it; a .nemo brings it along.
    Raises Refused if the file contains something else.
    """
    try:
        states, own = _from_nemo(path) if path.suffix == ".nemo" else (_from_checkpoint(path), config)
    except (OSError, tarfile.TarError, yaml.YAMLError, RuntimeError, KeyError) as error:
        raise Refused([Finding(str(path), "", f"cannot be read ({error!r:.200})", "train the trial again")]) from None
    if not states or not own:
        remedy = "export the file that a LoRA trial saved at its end"
        raise Refused([Finding(str(path), "", "contains no adapter weights", remedy)])
    tuning = own["peft"]["lora_tuning"]
    if tuning.get("weight_tying"):
        why = "shares one adapter among all layers, with position embeddings, which peft cannot express"
        raise Refused([Finding(f"{path}: lora_tuning.weight_tying", "true", why)])
    model = cast("GptConfig", own)
    shape, rank, alpha = shape_of(path, model, 0), int(tuning["adapter_dim"]), tuning.get("alpha")
    joined = _joined(path, states, shape)
    adapters = Adapters(
        shape, rank, float(rank if alpha is None else alpha), float(tuning.get("adapter_dropout") or 0.0), joined
    )
    _check(path, adapters, lora.shapes(model))
    return adapters


def _from_nemo(path: Path) -> tuple[dict[tuple[int, int], _State], dict[str, Any]]:
    """({(tensor-parallel rank, pipeline rank): weights}, model_config.yaml)."""
    states, config = {}, {}
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            file = archive.extractfile(member)
            if file is None:
                continue
            if name == nemo_file.CONFIG:
                config = yaml.safe_load(file.read())
            elif name.endswith("model_weights.ckpt"):
                states[_place(name)] = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    return states, config


def _from_checkpoint(path: Path) -> dict[tuple[int, int], _State]:
    """Read only the tensors of a Lightning checkpoint, which also contains NeMo's config as an object."""
    files = [path]
    if _RANK.fullmatch(path.parent.name + "/"):
        files = [
            file
            for file in sorted(path.parent.parent.glob(f"*/{path.name}"))
            if _RANK.fullmatch(f"{file.parent.name}/")
        ]
    return {
        _place(f"{file.parent.name}/"): torch.load(
            file, map_location="cpu", weights_only=False, pickle_module=safe_pickle
        )["state_dict"]
        for file in files
    }


def _place(name: str) -> tuple[int, int]:
    match = _RANK.match(name)
    return (int(match["mp"] or match["tp"]), int(match["pp"] or 0)) if match else (0, 0)


def _joined(path: Path, states: dict[tuple[int, int], _State], shape: LlamaShape) -> dict[tuple[int, str], Pair]:
    tensor, pipeline = (1 + max(place[axis] for place in states) for axis in (0, 1))
    if len(states) != tensor * pipeline:
        why = f"contains weights of {len(states)} ranks, but {tensor} x {pipeline} are needed"
        raise Refused([Finding(str(path), "", why, "train the trial again")])
    shares: dict[tuple[int, str, str], list[torch.Tensor]] = {}
    for (_, stage), state in sorted(states.items()):
        for key, weight in state.items():
            layer, module, part = _parse(path, key)
            layer += stage * (shape.layers // pipeline)  # a pipeline stage counts its own layers
            shares.setdefault((layer, module, part), []).append(weight)
    fused = {}
    for layer, module in sorted({key[:2] for key in shares}):
        into, out = (shares.get((layer, module, part), []) for part in ("linear_in", "linear_out"))
        if not len(into) == len(out) == tensor:
            why = f"lacks a matrix of {module} of layer {layer}"
            raise Refused([Finding(str(path), "", why, "train the trial again")])
        fused[layer, module] = (torch.cat(into, dim=1 if module in _INPUT_SPLIT else 0), _rows(module, out))
    return fused


def _rows(module: str, shares: Sequence[torch.Tensor]) -> torch.Tensor:
    """The fused B of all tensor-parallel ranks. A rank's rows of fc1 are its gate rows, then its up rows; those of q, k
    and v are ordered by query group, and each rank has whole groups."""
    if module == "mlp_fc1":
        halves = [share.chunk(2) for share in shares]
        return torch.cat([*(gate for gate, _ in halves), *(up for _, up in halves)])
    return torch.cat(list(shares))


def _parse(path: Path, key: str) -> tuple[int, str, str]:
    match = _KEY.fullmatch(key)
    if not match or match[2] not in _NAMES:
        why = f"has a weight that is not LoRA's on attention or MLP: {key}"
        raise Refused([Finding(str(path), "", why, "only NeMo's own variant of LoRA can be exported")])
    return int(match[1]), _NAMES[match[2]], match[3]


def _check(path: Path, adapters: Adapters, sizes: dict[str, tuple[int, int]]) -> None:
    for (layer, module), (into, out) in adapters.fused.items():
        inputs, outputs = sizes[module]
        if tuple(into.shape) != (adapters.rank, inputs) or tuple(out.shape) != (outputs, adapters.rank):
            why = f"{module} of layer {layer} has shapes {tuple(into.shape)} and {tuple(out.shape)}"
            expected = f"{(adapters.rank, inputs)} and {(outputs, adapters.rank)}"
            raise Refused([Finding(str(path), "", f"{why}, not {expected}", "train the trial again")])
