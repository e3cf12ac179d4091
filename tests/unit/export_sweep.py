"""Made-up LoRA trials for the export's tests: random matrices, saved as NeMo's ranks save their shares of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import torch
import yaml

from data_prep.models import adapters
from launcher.nemo import lora
from launcher.sweep.folder import Sweep

RANK, ALPHA = 4, 6
#: tiny's: two layers, four query heads in two groups of 16.
MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 160,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "encoder_seq_length": 256,
    "global_batch_size": 4,
    "seed": 1,
    "optim": {"name": "fused_adam", "lr": 1e-3},
    "dpo": {"preference_loss": "dpo"},
}
NAMES = {module: name for name, module in adapters._NAMES.items()}


def matrices(modules=tuple(NAMES), layers=(0, 1)) -> dict:
    """(layer, module) -> random A, B."""
    random = torch.Generator().manual_seed(3)
    sizes = lora.shapes(MODEL)
    return {
        (layer, module): tuple(torch.randn(*size, generator=random) for size in ((RANK, into), (out, RANK)))
        for layer in layers
        for module in modules
        for into, out in [sizes[module]]
    }


def states(whole: dict, tensor: int = 1, pipeline: int = 1) -> dict[str, dict]:
    """What each rank would save: {folder in the .nemo: weights}."""
    found = {}
    for tp in range(tensor):
        for pp in range(pipeline):
            state = {}
            for (layer, module), (into, out) in whole.items():
                if layer * pipeline // MODEL["num_layers"] != pp:
                    continue
                key = f"model.decoder.layers.{layer - pp * MODEL['num_layers'] // pipeline}.{NAMES[module]}"
                axis = 1 if module in ("attention_dense", "mlp_fc2") else 0
                state[f"{key}.linear_in.weight"] = into.chunk(tensor, axis)[tp].clone()
                rows = (
                    [half.chunk(tensor)[tp] for half in out.chunk(2)]
                    if module == "mlp_fc1"
                    else [out.chunk(tensor)[tp]]
                )
                state[f"{key}.linear_out.weight"] = torch.cat(rows)
            folder = (
                f"tp_rank_{tp:02d}_pp_rank_{pp:03d}/" if pipeline > 1 else f"mp_rank_{tp:02d}/" if tensor > 1 else ""
            )
            found[folder] = state
    return found


def write_nemo(path: Path, saved: dict[str, dict], tuning: dict | None = None) -> Path:
    """As NLPSaveRestoreConnector.save_to packs what the ranks saved."""
    config = {
        **MODEL,
        "peft": {"peft_scheme": "lora", "lora_tuning": {"adapter_dim": RANK, "alpha": ALPHA, **(tuning or {})}},
    }
    files = {"model_config.yaml": yaml.safe_dump(config).encode()}
    for folder, state in saved.items():
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files[f"{folder}model_weights.ckpt"] = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def config(base: Path, beta: float, data: Path) -> dict:
    tuning = {"adapter_dim": RANK, "alpha": ALPHA, "target_modules": list(NAMES)}
    return {
        "pretrained_checkpoint": {"restore_from_path": str(base)},
        "trainer": {"devices": 1, "num_nodes": 1, "dpo": {"limit_val_batches": 1.0}},
        "model": {
            **MODEL,
            "dpo": {"preference_loss": "dpo", "ref_policy_kl_penalty": beta},
            "peft": {"peft_scheme": "lora", "lora_tuning": tuning},
            "data": {"data_prefix": {"train": [str(data)], "validation": [str(data.parent / "gone.jsonl")]}},
        },
    }


def finish(sweep: Sweep, number: int, accuracy: float = 0.5, drift: float = 1.0) -> None:
    folder = sweep.trials[number].folder
    nemo = write_nemo(folder / "results" / "checkpoints" / "megatron_gpt.nemo", states(matrices()))
    final = {"step": 10, "val/loss": 0.5 - drift / 10, "val/acc": accuracy}
    final |= {"val/rewards_chosen_mean": drift, "val/rewards_rejected_mean": -drift, "val/rewards_all_std": 1.0}
    result = {"beta": sweep.trials[number].beta, "steps": 10, "consumed_samples": 40, "final": final, "baseline": {}}
    result |= {"pairs": {"train": 40, "validation": 8}, "nemo": str(nemo), "versions": {"torch": "2"}, "ranks": 1}
    (folder / "result.json").write_text(json.dumps(result))
