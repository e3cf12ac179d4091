"""LoRA: translates HF's module names to NeMo's fused ones, and counts the trained parameters."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.findings import Finding, Refused
from launcher.nemo.gpt_config import GptConfig
from launcher.trial_config.model import LoraTuning

KEY = "model.peft.lora_tuning.target_modules"

#: NeMo's module -> HF's modules that it fuses (q, k, v are one matrix in Megatron, gate and up another).
FUSED: dict[str, tuple[str, ...]] = {
    "attention_qkv": ("q_proj", "k_proj", "v_proj"),
    "attention_dense": ("o_proj",),
    "mlp_fc1": ("gate_proj", "up_proj"),
    "mlp_fc2": ("down_proj",),
}
#: NeMo's short names for several modules (NeMo-Aligner's gpt_dpo.yaml).
GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": tuple(FUSED),
}
_HF = [name for names in FUSED.values() for name in names]
#: The values that vLLM accepts for --max-lora-rank.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def vllm_rank(rank: int) -> int:
    """The least that vLLM accepts as the highest rank of its adapters, for adapters of this rank."""
    return next((size for size in _VLLM_RANKS if size >= rank), rank)


def nemo_modules(names: Sequence[str]) -> list[str]:
    """Translate HF's and NeMo's names, which may be mixed, to NeMo's four, in the model's order.

    Raises Refused if a name is unknown or only part of a fused module is named: NeMo's adapter on `attention_qkv`
    covers q, k and v together, so only q_proj has no translation.
    """
    findings = []
    wanted: set[str] = set()
    for name in names:
        if name == "all-linear":
            wanted.update(FUSED)
        elif name in GROUPS:
            wanted.update(GROUPS[name])
        elif name in FUSED:
            wanted.add(name)
        elif name not in _HF:
            known = ", ".join([*_HF, *FUSED, *GROUPS])
            findings.append(Finding(KEY, name, "no such module", f"there are: {known}"))
    for fused, parts in FUSED.items():
        named = [part for part in parts if part in names]
        missing = [part for part in parts if part not in names]
        if named and missing and fused not in wanted:
            why = f"NeMo adapts {', '.join(parts)} as one fused module, {fused}; {' and '.join(missing)} missing"
            findings.append(Finding(KEY, ",".join(named), why, f"add {', '.join(missing)}, or drop {', '.join(named)}"))
        elif named:
            wanted.add(fused)
    if findings:
        raise Refused(findings)
    return [fused for fused in FUSED if fused in wanted]


def shapes(model: GptConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the four fused matrices of one layer, from a .nemo's model_config.yaml."""
    hidden, heads, ffn = model["hidden_size"], model["num_attention_heads"], model["ffn_hidden_size"]
    head_dim = model.get("kv_channels") or hidden // heads
    kv_heads = model.get("num_query_groups") or heads
    return {
        "attention_qkv": (hidden, (heads + 2 * kv_heads) * head_dim),
        "attention_dense": (heads * head_dim, hidden),
        "mlp_fc1": (hidden, 2 * ffn),  # SwiGLU: gate and up
        "mlp_fc2": (ffn, hidden),
    }


def trainable_parameters(model: GptConfig, tuning: LoraTuning) -> int:
    """Parameters of the adapters: rank x (inputs + outputs) of each adapted matrix (LoRA, arXiv 2106.09685)."""
    layers = len(tuning.layer_selection) if tuning.layer_selection else int(model["num_layers"])
    matrices = shapes(model)
    return layers * tuning.adapter_dim * sum(sum(matrices[name]) for name in tuning.target_modules)


def parameters(model: GptConfig, vocabulary: int) -> int:
    """All parameters of a Llama with `vocabulary` tokens: embeddings (twice if not tied), matrices, norms."""
    hidden = model["hidden_size"]
    layer = sum(inputs * outputs for inputs, outputs in shapes(model).values()) + 2 * hidden
    tables = 1 if model.get("share_embeddings_and_output_weights", True) else 2
    return model["num_layers"] * layer + hidden + tables * vocabulary * hidden
