"""DPO's loss and rewards in plain transformers and peft, from the adapters that NeMo wrote: the CPU path's measure."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.models.megatron_weights import fuse_qkv

#: NeMo's adapter -> HF's modules that it covers; q, k, v and gate, up are one matrix in Megatron.
PARTS = {
    "self_attention.adapter_layer.lora_kqv_adapter": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.adapter_layer.lora_dense_attention_adapter": ("self_attn.o_proj",),
    "mlp.adapter_layer.lora_hto4h_adapter": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.adapter_layer.lora_4htoh_adapter": ("mlp.down_proj",),
}


def read_adapters(nemo: Path) -> dict[str, torch.Tensor]:
    """The LoRA weights of a .nemo that NeMo saved at the end of training, in fp32."""
    with tarfile.open(nemo) as archive:
        name = next(name for name in archive.getnames() if name.endswith("model_weights.ckpt"))
        member = archive.extractfile(name)
        assert member is not None
        weights = torch.load(io.BytesIO(member.read()), map_location="cpu", weights_only=True)
    return {key.removeprefix("model.").removeprefix("module."): value.float() for key, value in weights.items()}


def split_rows(adapter: str, rows: torch.Tensor, config: Any) -> list[torch.Tensor]:
    """Rows of a fused adapter's second matrix (outputs, rank), cut into those of HF's modules.

    Megatron's qkv goes by query group: a group's query heads, its key head, its value head, then the next group.
    """
    if adapter.endswith("kqv_adapter"):
        size, groups = config.hidden_size // config.num_attention_heads, config.num_key_value_heads
        queries = config.num_attention_heads // groups
        heads = rows.view(groups, queries + 2, size, -1)
        parts = (heads[:, :queries], heads[:, queries], heads[:, queries + 1])
        return [part.reshape(-1, rows.shape[1]) for part in parts]
    return list(rows.chunk(len(PARTS[adapter])))


def with_adapters(hf_folder: Path, nemo: Path, rank: int, alpha: float) -> Any:
    """HF's model with peft's LoRA layers, holding what NeMo trained."""
    return adapted(hf_folder, read_adapters(nemo), rank, alpha, torch.float32).eval()


def adapted(hf_folder: Path, trained: Mapping[str, torch.Tensor], rank: int, alpha: float, precision: Any) -> Any:
    """HF's model in `precision` with peft's LoRA layers, holding the weights `trained`, by NeMo's names."""
    model = AutoModelForCausalLM.from_pretrained(hf_folder, torch_dtype=precision, low_cpu_mem_usage=True)
    modules = [part.rpartition(".")[2] for parts in PARTS.values() for part in parts]
    lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, lora_dropout=0.0)
    return load_adapters(get_peft_model(model, lora, autocast_adapter_dtype=False), trained)


def load_adapters(policy: Any, trained: Mapping[str, torch.Tensor]) -> Any:
    """peft's `policy` with NeMo's adapters in its layers."""
    layers = policy.config.num_hidden_layers
    left = {f"decoder.{name.rpartition('decoder.')[2]}": weight for name, weight in trained.items()}
    state = {}
    for layer in range(layers):
        for adapter, modules in PARTS.items():
            key = f"decoder.layers.{layer}.{adapter}"
            into, out = left.pop(f"{key}.linear_in.weight"), left.pop(f"{key}.linear_out.weight")
            for module, rows in zip(modules, split_rows(adapter, out, policy.config), strict=True):
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                state |= {f"{prefix}.lora_A.weight": into, f"{prefix}.lora_B.weight": rows}
    assert not left, f"adapters left over: {sorted(left)}"
    unexpected = set_peft_model_state_dict(policy, state).unexpected_keys
    assert not unexpected, unexpected
    return policy


def fused_gradients(policy: Any) -> dict[str, torch.Tensor]:
    """The gradients of `adapted`'s layers by NeMo's names, fp32: of the A that fused projections share, the sum."""
    found = {}
    for index, layer in enumerate(policy.base_model.model.model.layers):
        for adapter, modules in PARTS.items():
            loras = [layer.get_submodule(module) for module in modules]
            key = f"decoder.layers.{index}.{adapter}"
            into = [lora.lora_A["default"].weight.grad.float() for lora in loras]
            out = [lora.lora_B["default"].weight.grad.float() for lora in loras]
            found[f"{key}.linear_in.weight"] = torch.stack(into).sum(0)
            if adapter.endswith("kqv_adapter"):
                out = [fuse_qkv(*out, policy.config.num_key_value_heads)]
            found[f"{key}.linear_out.weight"] = torch.cat(out)
    return found


def held_out_metrics(policy: Any, hf_folder: Path, pairs: Path, beta: float) -> dict[str, float]:
    """What NeMo-Aligner logs of a validation (Rafailov et al. 2023, eq. 7), one sequence at a time, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(hf_folder)
    rewards = []
    for row in map(json.loads, pairs.read_text().splitlines()):
        sides = [row["chosen_response"], row["rejected_response"]]
        rewards.append([_log_ratio(policy, tokenizer, row["prompt"], response) for response in sides])
    chosen, rejected = torch.tensor(rewards).unbind(1)
    return {
        "val/loss": float(-torch.nn.functional.logsigmoid(beta * (chosen - rejected)).mean()),
        "val/acc": float((chosen > rejected).float().mean()),
        "val/rewards_chosen_mean": float(chosen.mean()),
        "val/rewards_rejected_mean": float(rejected.mean()),
    }


@torch.no_grad()
def _log_ratio(policy: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """log pi(response | prompt) - log pi_ref(response | prompt)."""
    tokens = tokenizer(prompt + response, add_special_tokens=False, return_tensors="pt").input_ids
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids)

    def log_probability() -> torch.Tensor:
        logits = policy(tokens[:, :-1]).logits.double()
        each = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        return each[:, start - 1 :].sum()

    adapted = log_probability()
    with policy.disable_adapter():
        return float(adapted - log_probability())
