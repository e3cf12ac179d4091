"""The shape of a Llama, Qwen2.5 or Mistral, from a config.json of transformers 4 or 5; others are refused. Stdlib only.

All three have one architecture: Qwen2.5 adds a bias to query, key and value; Mistral is a Llama under another name.

transformers 5 has `rope_parameters` in place of `rope_theta` and `rope_scaling`, and `dtype` in place of `torch_dtype`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from launcher.findings import Finding, Refused


class RopeScaling(NamedTuple):
    """How Llama 3.1 and later scale their rotary frequencies (`llama3` in config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


LLAMA31 = RopeScaling(8.0, 1.0, 4.0, 8192.0)
"""Llama 3.1's and 3.3's; Llama 3.2 has the factor 32."""
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_NUMBERS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.02}  # with LlamaConfig's defaults


@dataclass(frozen=True)
class Family:
    """A family of models that is converted."""

    prefix: str
    """Of transformers' classes, such as the LlamaDecoderLayer."""
    qkv_bias: bool


#: By config.json's model_type.
FAMILIES = {"llama": Family("Llama", False), "qwen2": Family("Qwen2", True), "mistral": Family("Mistral", False)}
_SUPPORTED = "Llama 2 to 3.3, SmolLM2, Qwen2.5 and Mistral 7B from v0.2 on can be converted"


@dataclass(frozen=True)
class LlamaShape:
    """A Llama's architecture, in Megatron's words where the two differ (query groups = HF's key-value heads)."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    query_groups: int
    head_dim: int
    vocab: int
    positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_linear: float | None
    """The factor of linear position interpolation, or None."""
    tied: bool
    """Whether the output layer is the embedding."""
    init_std: float
    dtype: str
    """The type of the weights according to config.json: float32, float16 or bfloat16."""
    qkv_bias: bool = False
    family: str = field(default="llama", compare=False)
    """Key of FAMILIES. It is not compared, since a Mistral's .nemo equals a Llama's."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the model's weights ([out, in] for linear layers), by HF's names."""
        query, keys = self.heads * self.head_dim, self.query_groups * self.head_dim
        projections = {"q_proj": query, "k_proj": keys, "v_proj": keys}
        layer: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (self.hidden,)}
        layer |= {f"self_attn.{name}.weight": (rows, self.hidden) for name, rows in projections.items()}
        if self.qkv_bias:
            layer |= {f"self_attn.{name}.bias": (rows,) for name, rows in projections.items()}
        layer |= {
            "self_attn.o_proj.weight": (self.hidden, query),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.ffn, self.hidden),
            "mlp.up_proj.weight": (self.ffn, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.ffn),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for index in range(self.layers):
            shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    @property
    def parameters(self) -> int:
        return sum(math.prod(size) for size in self.tensors().values())


def read_shape(path: Path) -> LlamaShape:
    """The architecture from PATH/config.json. Raises Refused with every key that NeMo 2.1 cannot reproduce."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused([Finding(str(file), "", "missing", "give the folder that holds config.json")]) from None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused([Finding(str(file), "", f"cannot be read ({error})", "fetch the folder again")]) from None
    if not isinstance(config, dict):
        raise Refused([Finding(str(file), "", "is not a JSON object", "fetch the folder again")])
    config, findings = _with_old_keys(file, config)
    findings = findings or list(_unsupported(file, config)) or list(_misshapen(file, config))
    if findings:
        raise Refused(findings)
    heads = config["num_attention_heads"]
    numbers = {key: float(config.get(key, default)) for key, default in _NUMBERS.items()}
    kind, rope = _rope_kind(config), config.get("rope_scaling") or {}
    return LlamaShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        query_groups=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        positions=config["max_position_embeddings"],
        norm_eps=numbers["rms_norm_eps"],
        rope_theta=numbers["rope_theta"],
        rope_scaling=RopeScaling(*(float(rope[key]) for key in RopeScaling._fields)) if kind == "llama3" else None,
        rope_linear=float(rope["factor"]) if kind == "linear" else None,
        tied=bool(config.get("tie_word_embeddings", False)),
        init_std=numbers["initializer_range"],
        dtype=str(config.get("torch_dtype") or "float32"),
        qkv_bias=FAMILIES[config["model_type"]].qkv_bias,
        family=config["model_type"],
    )


def _with_old_keys(file: Path, config: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The config with the keys of transformers 4; and findings if it has both kinds of keys and they disagree."""
    new = config.get("rope_parameters")
    if new is not None and not isinstance(new, dict):
        return config, [Finding(f"{file}: rope_parameters", str(new), "is not an object")]
    translated: dict[str, Any] = {}
    if new:
        scaling = {key: value for key, value in new.items() if key != "rope_theta"}
        default = scaling.get("rope_type", "default") == "default" and scaling.keys() <= {"rope_type"}
        translated["rope_scaling"] = None if default else scaling
        if "rope_theta" in new:
            translated["rope_theta"] = new["rope_theta"]
    if config.get("dtype") is not None:
        translated["torch_dtype"] = config["dtype"]
    findings = [
        Finding(f"{file}: {key}", str(config[key]), f"disagrees with {_NEW_KEYS[key]}", "fetch the config.json again")
        for key, value in translated.items()
        if config.get(key) is not None and config[key] != value
    ]
    return {**config, **translated}, findings


_NEW_KEYS = {"rope_scaling": "rope_parameters", "rope_theta": "rope_parameters", "torch_dtype": "dtype"}


def _unsupported(file: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Architectures of other families, and options that Megatron's GPT lacks."""
    where, kind = f"{file}: ", config.get("model_type")
    family = FAMILIES.get(str(kind))
    named = config.get("architectures") or [f"{family.prefix}ForCausalLM" if family else f"model_type {kind}"]
    if family is None or named != [f"{family.prefix}ForCausalLM"]:
        yield Finding(f"{where}architectures", ",".join(map(str, named)), "unsupported architecture", _SUPPORTED)
        return
    if config.get("hidden_act", "silu") != "silu":
        yield Finding(f"{where}hidden_act", str(config["hidden_act"]), f"is not {family.prefix}'s", "needs silu")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            yield Finding(f"{where}{key}", "true", "NeMo's Llama has no such bias", _SUPPORTED)
    if config.get("quantization_config"):
        remedy = "convert the unquantised checkpoint"
        yield Finding(f"{where}quantization_config", "", "the weights are quantised", remedy)
    yield from _unsupported_window(where, config)
    yield from _unsupported_rope(f"{where}rope_scaling", config)


def _unsupported_window(where: str, config: dict[str, Any]) -> Iterator[Finding]:
    """Attention that sees the last tokens only: Mistral 7B v0.1's, and an option of Qwen2.5's that no release uses."""
    window = config.get("sliding_window", 4096 if config["model_type"] == "mistral" else None)  # as in transformers
    if config["model_type"] == "qwen2" and not config.get("use_sliding_window"):
        window = None
    if window is not None:
        why = f"attention sees the last {window} tokens only, and NeMo's model all"
        remedy = f"to train on at most {window} tokens, where it makes no difference, set it to null in config.json"
        yield Finding(f"{where}sliding_window", str(window), why, remedy)


def _rope_kind(config: dict[str, Any]) -> str:
    rope = config.get("rope_scaling") or {}
    return str(rope.get("rope_type", rope.get("type", "default")))


def _unsupported_rope(where: str, config: dict[str, Any]) -> Iterator[Finding]:
    rope = config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        yield Finding(where, str(rope), "is not an object")
        return
    kind = _rope_kind(config)
    if kind == "llama3":
        for key in RopeScaling._fields:
            if not isinstance(rope.get(key), (int, float)) or not rope[key] > 0:
                yield Finding(f"{where}.{key}", str(rope.get(key)), "is not a positive number")
    elif kind == "linear":
        factor = rope.get("factor")
        if not isinstance(factor, (int, float)) or not factor > 0:
            yield Finding(f"{where}.factor", str(factor), "is not a positive number")
    if config.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) not in (None, 1, 1.0):
        yield Finding(where, str(rope), "only part of each head is rotated", "Llama models rotate the whole head")
    if kind not in ("default", "llama3", "linear"):
        remedy = "only llama3, linear and none can be converted"
        yield Finding(f"{where}.rope_type", kind, "NeMo 2.1 has no such scaling", remedy)


def _misshapen(file: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """Sizes that are missing or do not fit together."""
    bad = [key for key in _SIZES if not isinstance(config.get(key), int) or config[key] < 1]
    for key in bad:
        yield Finding(f"{file}: {key}", str(config.get(key)), "must be a positive whole number")
    for key in _NUMBERS:
        value = config.get(key, 1.0)
        if not isinstance(value, (int, float)) or not value > 0:
            yield Finding(f"{file}: {key}", str(value), "must be a positive number")
    if config["model_type"] != "llama" and not isinstance(config.get("num_key_value_heads"), int):
        bad.append("num_key_value_heads")
        yield Finding(f"{file}: num_key_value_heads", str(config.get(bad[-1])), "must be a positive whole number")
    if bad:
        return
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        yield Finding(f"{file}: num_key_value_heads", str(groups), f"does not divide num_attention_heads={heads}")
    if not config.get("head_dim") and hidden % heads:
        yield Finding(f"{file}: num_attention_heads", str(heads), f"does not divide hidden_size={hidden}")
