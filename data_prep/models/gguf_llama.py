"""A Llama in a GGUF file, as a Hugging Face folder in fp32: config, weights, tokenizer, chat template.

transformers can read GGUF too, to the same weights, but takes three times as long, and 4.48 gives such a tokenizer its
begin token as end token and no padding token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL = 3  # GGUF's token type of special tokens


def write_hf_folder(gguf_file: Path, folder: Path) -> None:
    """Write `gguf_file` as an HF folder with one model.safetensors. Raises ValueError if it is not such a Llama."""
    import gguf
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(str(gguf_file))
    field = {key: entry.contents() for key, entry in reader.fields.items()}
    config = hf_config(field, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            values = unpermute(values, heads if ".attn_q." in tensor.name else groups)
        weights[hf_name(tensor.name)] = np.ascontiguousarray(values, dtype=np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config)
    _write_tokenizer(field, folder)


def hf_name(name: str) -> str:
    """GGUF's name of a weight -> HF's: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    if name in _WHOLE:
        return _WHOLE[name]
    if name == "output.weight":
        return "lm_head.weight"
    block, layer, part, kind = name.split(".")
    if block != "blk" or kind != "weight":
        raise ValueError(f"{name} is not a weight of a Llama")
    return f"model.layers.{layer}.{_NAMES[part]}.weight"


def unpermute(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo llama.cpp's order of a query or key projection's rows ([heads * d, hidden]).

    It stores each head's rotary pairs side by side (0, d/2, 1, d/2 + 1, ...), HF one half after the other.
    Source: `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.shape[0] // heads // 2
    return weight.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def hf_config(field: dict[str, Any], tied: bool) -> dict[str, Any]:
    """GGUF's metadata as config.json. Raises ValueError for another architecture than Llama's."""
    if field.get("general.architecture") != "llama":
        raise ValueError(f"architecture {field.get('general.architecture')} is not llama")
    ids = {name: field.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "num_hidden_layers": field["llama.block_count"],
        "num_attention_heads": field["llama.attention.head_count"],
        "num_key_value_heads": field["llama.attention.head_count_kv"],
        "vocab_size": len(field["tokenizer.ggml.tokens"]),
        "max_position_embeddings": field["llama.context_length"],
        # float32 in the file; the nearest short decimal is what it was made from (1e-05, not 9.99999974e-06)
        "rms_norm_eps": float(f"{field['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": float(field["llama.rope.freq_base"]),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": field["llama.embedding_length"] ** -0.5,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        **{f"{name}_id": value for name, value in ids.items() if name != "unk_token" and value is not None},
    }


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _write_tokenizer(field: dict[str, Any], folder: Path) -> None:
    """SmolLM's byte-level BPE: digits one by one, then GPT-2's pattern (`smollm` in llama.cpp's llama-vocab.cpp)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if (field["tokenizer.ggml.model"], field["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {field['tokenizer.ggml.pre']} is not SmolLM's")
    tokens = field["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {name: tokens[field[f"tokenizer.ggml.{key}_token_id"]] for name, key in _SPECIAL.items()}
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": field["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": field.get("tokenizer.chat_template"),
            **named,
        },
    )
    _write(folder / "special_tokens_map.json", named)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
