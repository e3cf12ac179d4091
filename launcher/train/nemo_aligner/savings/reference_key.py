"""All that the reference policy's log-probabilities depend on, spelled out, so that they can be kept under its digest.

What could be left out is named here; anything else in the model's config makes another key, so that a key that NeMo or
a user adds leads to numbers computed anew, not to wrong ones.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from launcher.check import kept_reference
from launcher.train import result
from launcher.train.nemo_aligner.savings.reference_cache import file_digest

#: Of the model's config: what says how the policy is trained, or where things lie.
_NOT_OF_THE_REFERENCE = (
    "dpo", "peft", "optim", "data", "tokenizer", "seed", "micro_batch_size", "global_batch_size", "restore_from_path",
    "resume_from_checkpoint", "nsys_profile", "target", "nemo_version", "overwrite_base_config",
    "dist_ckpt_parallel_load", "async_grad_allreduce",
)  # fmt: skip
#: Of model.data: where things lie and how they are read; the rest says how a row becomes tokens.
_NOT_OF_THE_TOKENS = (
    "data_prefix", "data_impl", "num_workers", "index_mapping_dir", "skip_warmup", "splits_string",
    "default_chosen_reward", "default_rejected_reward",
)  # fmt: skip
#: Modules of the launcher's whose code the numbers come from.
_CODE = (
    "savings/attention.py", "savings/blocks.py", "savings/micro_batches.py", "savings/packing.py",
    "savings/reference.py", "savings/response_logits.py", "savings/row.py", "savings/shared_prompt.py", "standins",
)  # fmt: skip


def unsupported_reason(config: DictConfig, model_config: DictConfig) -> str:
    """Why a trial's reference log-probabilities cannot be kept, "" where they can."""
    if not config.paths.get("cache"):
        return "paths.cache is not set"
    positions = (config.get("compute") or {}).get("positions_per_micro_batch", "auto")
    gpu_in_bf16 = config.trainer.accelerator == "gpu" and str(config.trainer.precision) != "32"
    return kept_reference.unsupported_reason(model_config, positions, gpu_in_bf16)


def of_model(
    config: DictConfig, model_config: DictConfig, computed: dict[str, object], notes: Path
) -> dict[str, object]:
    """Of the base model and the way it is run; `notes` is a folder to remember files' digests in."""
    model = OmegaConf.to_container(model_config, resolve=True)
    assert isinstance(model, dict)
    tokenizer = dict(model.get("tokenizer") or {})
    folder = Path(str(tokenizer.get("type") or ""))
    if folder.is_dir():  # each trial unpacks its own
        tokenizer["type"] = file_digest(folder)
    return {
        "base": file_digest(Path(config.pretrained_checkpoint.restore_from_path), notes),
        "tokenizer": tokenizer,
        "model": {name: value for name, value in sorted(model.items()) if name not in _NOT_OF_THE_REFERENCE},
        "all_weights": model["peft"]["peft_scheme"] == "none",
        "micro_batch": model["dpo"]["log_prob_forward_micro_batch_size"],
        "precision": str(config.trainer.precision),
        "device": _device(config.trainer.accelerator),
        "kernels": _kernels(config.trainer.accelerator),
        "code": {**result.versions(), "launcher": _own_code()},
        **computed,
    }


def of_pairs(config: DictConfig, split: str, notes: Path) -> dict[str, object]:
    """Of one split's rows and of how they become tokens."""
    data = OmegaConf.to_container(config.model.data, resolve=True)
    assert isinstance(data, dict)
    return {
        "split": split,
        "files": [file_digest(Path(str(name)), notes) for name in data["data_prefix"][split]],
        "tokens": {name: value for name, value in sorted(data.items()) if name not in _NOT_OF_THE_TOKENS},
    }


def _device(accelerator: str) -> str:
    import torch

    from launcher.machine import cpu_name

    return torch.cuda.get_device_name() if accelerator == "gpu" else cpu_name()


def _kernels(accelerator: str) -> dict[str, object]:
    """What chooses among a GPU's kernels, besides the versions of packages and the model's config."""
    import torch

    if accelerator != "gpu":
        return {}
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("NVTE_")}
    return {"cudnn": torch.backends.cudnn.version(), **variables}


def _own_code() -> str:
    digest = hashlib.blake2b(digest_size=16)
    folder = resources.files("launcher.train.nemo_aligner")  # in an archive, when the sweep's own copy of the code runs
    for name in _CODE:
        path = folder / name
        files = [file for file in path.iterdir() if file.name.endswith(".py")] if path.is_dir() else [path]
        for file in sorted(files, key=lambda file: file.name):
            digest.update(file.read_bytes())
    return digest.hexdigest()
