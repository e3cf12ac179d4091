"""A Llama's .nemo as a Hugging Face folder: sharded safetensors, config.json, tokenizer. One tensor at a time.

The inverse of convert_checkpoint.py, bit for bit; it also reads files of NeMo's own converter and of a training of all
weights. With a function that changes each weight, it writes a model with an adapter merged into it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep import folders, unfinished
from data_prep.models.hf_folder import TOKENIZER_FILES, open_folder
from data_prep.models.llama_shape import FAMILIES, LLAMA31, LlamaShape, RopeScaling, read_shape
from data_prep.models.safetensors_writer import SafetensorsWriter
from data_prep.models.torch_dist import CheckpointReader
from data_prep.progress import Progress
from data_prep.unfinished import Journal
from launcher.findings import Finding, Refused
from launcher.nemo import base_model, nemo_file
from launcher.nemo.gpt_config import GptConfig

if TYPE_CHECKING:
    import torch

Change = Callable[[str, "torch.Tensor"], "torch.Tensor"]
#: The values that these keys may have in a Llama's model_config.yaml, if present; other architectures are refused.
_LLAMA = {
    "normalization": ("rmsnorm",),
    "activation": ("fast-swiglu",),
    "position_embedding_type": ("rope",),
    "bias": (False,),
    "qkv_bias": (False, True, None),
    "num_moe_experts": (None,),
    "rotary_percentage": (1.0, 1),
    "rotary_interleaved": (False, None),
    "layernorm_zero_centered_gamma": (False, None),
}
_EMBEDDING = "model.embedding.word_embeddings.weight"


@dataclass(frozen=True)
class NemoModel:
    """A base model in a .nemo, checked to be a Llama."""

    path: Path
    shape: LlamaShape
    reader: CheckpointReader
    tokenizer: str
    """The tokenizer according to model_config.yaml."""

    @property
    def dtype(self) -> torch.dtype:
        return self.reader.dtype(_EMBEDDING)


def open_nemo(path: Path) -> NemoModel:
    """Read the config of a .nemo and the index of its weights. Raises Refused if it is not a Llama."""
    base = base_model.load(path)
    if base is None:
        raise Refused([Finding(str(path), "", "is not a readable .nemo file", "name the base model's .nemo")])
    reader = CheckpointReader(path)
    rows = reader.shapes.get(_EMBEDDING, (0,))[0]
    shape = shape_of(path, base.config, base.vocabulary or rows)
    shape = replace(shape, dtype=str(reader.dtype(_EMBEDDING)).removeprefix("torch."))
    return NemoModel(path, shape, reader, str((base.config.get("tokenizer") or {}).get("type")))


def shape_of(path: Path, config: GptConfig, vocabulary: int) -> LlamaShape:
    """The Llama that a model_config.yaml describes: the inverse of nemo_config.model_config. Raises Refused."""
    found: Mapping[str, object] = config
    findings = [
        Finding(
            f"{path}: {key}", str(found[key]), "is not a Llama's", "only Llama models have such a Hugging Face folder"
        )
        for key, good in _LLAMA.items()
        if key in found and found[key] not in good
    ]
    missing = [
        key for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads") if key not in config
    ]
    if missing:
        findings.append(Finding(f"{path}: {', '.join(missing)}", "", "missing", "name a base model's .nemo"))
    if findings:
        raise Refused(findings)
    heads = config["num_attention_heads"]
    linear = config.get("seq_len_interpolation_factor")
    return LlamaShape(
        layers=config["num_layers"],
        hidden=config["hidden_size"],
        ffn=config["ffn_hidden_size"],
        heads=heads,
        query_groups=config.get("num_query_groups") or heads,
        head_dim=config.get("kv_channels") or config["hidden_size"] // heads,
        vocab=vocabulary,
        positions=config.get("max_position_embeddings") or config["encoder_seq_length"],
        norm_eps=float(config.get("layernorm_epsilon", 1e-5)),
        rope_theta=float(config.get("rotary_base", 10000.0)),
        rope_scaling=_rope_scaling(config),
        rope_linear=None if linear is None else float(linear),
        tied=bool(config.get("share_embeddings_and_output_weights", True)),
        init_std=float(config.get("init_method_std", 0.02)),
        dtype="float32",
        qkv_bias=bool(config.get("qkv_bias")),
        family="qwen2" if config.get("qkv_bias") else "llama",
    )


def _rope_scaling(config: GptConfig) -> RopeScaling | None:
    if own := config.get(nemo_file.ROPE_SCALING):
        return RopeScaling(**own)
    return LLAMA31 if config.get("scale_positional_embedding", False) else None


def hf_config(shape: LlamaShape) -> dict[str, object]:
    """config.json of a Llama of this shape, without the begin and end tokens, which only the tokenizer knows."""
    rope: dict[str, Any] | None = None
    if shape.rope_scaling is not None:
        rope = {"rope_type": "llama3", **shape.rope_scaling._asdict()}
    if shape.rope_linear is not None:
        rope = {"rope_type": "linear", "factor": shape.rope_linear}
    return {
        "architectures": [f"{FAMILIES[shape.family].prefix}ForCausalLM"],
        "model_type": shape.family,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.query_groups,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": rope,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": shape.init_std,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": shape.dtype,
    }


def write_folder(
    model: NemoModel, folder: Path, progress: Progress, change: Change | None = None, journal: Journal | None = None
) -> None:
    """Fill the existing `folder`. `change` gets each weight with HF's name and returns the weight to write instead.

    Weights that `journal` lists are already written. Raises Refused if the .nemo contains no tokenizer.
    """
    from data_prep.models.megatron_weights import read_weights

    _put_tokenizer(model, folder)
    _write_config(model.shape, folder)
    shapes = model.shape.tensors()
    writer = SafetensorsWriter(folder, shapes, model.dtype, journal=journal)
    if there := len(shapes) - len(writer.due):
        progress.say(f"continues an interrupted conversion: {there} of {len(shapes)} tensors are written already")
    with progress.phase(f"writing {model.shape.layers} layers as safetensors"):
        for name, weight in read_weights(model.shape, model.reader, frozenset(writer.due)):
            progress.detail = name
            writer.add(name, change(name, weight) if change else weight)
        writer.close()
    open_folder(folder)  # raises Refused if the folder could not be read again


def _put_tokenizer(model: NemoModel, folder: Path) -> None:
    """Copy the tokenizer from the .nemo, or from the HF folder it names: NeMo's own converter stores only that name."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        named = Path(model.tokenizer)
        source = named if named.is_dir() else nemo_file.unpack_tokenizer(model.path, Path(scratch) / "tokenizer")
        for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _write_config(shape: LlamaShape, folder: Path) -> None:
    """Write config.json: the original, stored with the tokenizer, if it describes the same model, else a new one."""
    file = folder / "config.json"
    if file.is_file():
        original = json.loads(file.read_text(encoding="utf-8"))
        own = read_shape(folder)
        config = {**original, "torch_dtype": shape.dtype}
        if "rope_parameters" in original:  # of transformers 5; with the older keys added, both versions read it right
            made = hf_config(shape)
            config |= {"dtype": shape.dtype, "rope_theta": made["rope_theta"], "rope_scaling": made["rope_scaling"]}
        if replace(own, dtype=shape.dtype, init_std=shape.init_std) != shape:
            config = hf_config(shape) | {key: value for key, value in original.items() if key.endswith("_token_id")}
    else:
        config = hf_config(shape)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def convert(source: Path, output: Path, force: bool = False) -> Path:
    """Make the folder `output` of the base model's file `source`. A killed conversion is continued. Raises Refused."""
    folders.check("OUTPUT", output, force)
    began = time.monotonic()
    model = open_nemo(source)
    output = output.absolute()
    with unfinished.work("OUTPUT", output, {"source": _identity(source)}) as (work, journal):
        made = work / output.name
        made.mkdir(exist_ok=True)
        write_folder(model, made, Progress(output.name), journal=journal)
        folders.put(made, output, work / "old")
    import resource

    size = sum(path.stat().st_size for path in output.glob("*.safetensors")) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{output}: {size:.0f} MiB in {time.monotonic() - began:.0f} s, peak memory {peak:.1f} GiB")
    return output


def _identity(nemo: Path) -> str:
    """Changes when the .nemo does: a hash of its files' names, sizes and times, since reading 16 GB takes minutes."""
    files = sorted(nemo.rglob("*")) if nemo.is_dir() else [nemo]
    facts = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
