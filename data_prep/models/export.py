"""Exports a finished trial: its adapter in the form that Hugging Face's peft and vLLM load, or merged into its base.

It reads the trial's config.yaml and result.json, the adapters among its results, its tokenizer, and the config and
record in the base model's .nemo; the base model's weights only to merge.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from data_prep import folders
from data_prep.models import adapters, nemo_to_hf
from data_prep.models.adapters import Adapters
from data_prep.models.hf_folder import TOKENIZER_FILES
from data_prep.models.model_card import card
from data_prep.progress import Progress
from launcher.findings import Finding, Refused
from launcher.nemo import base_model, lora, nemo_file
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial


def export(
    sweep: Sweep,
    trial: Trial,
    out: Path,
    *,
    merge: bool = False,
    base: str | None = None,
    force: bool = False,
    adapter: Path | None = None,
) -> Path:
    """Write the folder `out`, whole or not at all; returns it.

    Without `merge`: adapter_model.safetensors, adapter_config.json, the tokenizer, README.md. With it: a whole model in
    the base model's precision. `base` is the base model's name in the folder (default: in the .nemo); `adapter` is
    the file of a checkpoint (default: the trial's last step). Raises Refused.
    """
    folders.check("--out", out, force)
    with folders.new_folder("--out", out) as folder:
        _fill(folder, sweep, trial, merge, base, adapter)
    return out


def export_all(
    sweep: Sweep, trials: Sequence[Trial], out: Path, *, base: str | None = None, force: bool = False
) -> list[str]:
    """Write each trial's adapter into its own folder in `out`: all of them or none.

    Returns the command line with which vLLM serves them side by side on their base model. Raises Refused, also if the
    trials have different base models: a server has only one.
    """
    folders.check("--out", out, force)
    bases = {str(trial.config()["pretrained_checkpoint"]["restore_from_path"]) for trial in trials}
    if len(bases) > 1:
        why = f"the trials have {len(bases)} base models: {', '.join(sorted(bases))}"
        raise Refused([Finding("--all", "", why, "export them one by one")])
    rank = 0
    names = [f"trial{trial.number}" for trial in trials]
    with folders.new_folder("--out", out) as folder:
        for name, trial in zip(names, trials, strict=True):
            (folder / name).mkdir()
            rank = max(rank, _fill(folder / name, sweep, trial, False, base).rank)
    command = ["vllm", "serve", base or base_name(Path(bases.pop())), "--enable-lora", "--max-loras", str(len(names))]
    command += ["--max-lora-rank", str(lora.vllm_rank(rank)), "--lora-modules"]
    return [*command, *(f"{name}={out / name}" for name in names)]


def _fill(
    folder: Path, sweep: Sweep, trial: Trial, merge: bool, base: str | None, adapter: Path | None = None
) -> Adapters:
    """Export one trial into the existing `folder`."""
    result = trial.result()
    if result is None:
        why = "has no result.json: it is not done"
        raise Refused([Finding(str(trial.folder), "", why, "wait for it, or `retry` it; see `status`")])
    config = trial.config()
    restored = Path(config["pretrained_checkpoint"]["restore_from_path"])
    described = base_model.load(restored)
    progress = Progress(f"trial {trial.name}")
    with progress.phase("reading the adapter"):
        shape = {**described.config, **config["model"]} if described else None
        trained = adapters.read(adapter or adapter_file(trial, result), shape)
    name = base or base_name(restored)
    if merge:
        model = nemo_to_hf.open_nemo(_there(restored))
        _fits(restored, model, trained)
        nemo_to_hf.write_folder(model, folder, progress, Merge(trained))
    else:
        write_peft(trained, name, folder)
        _copy_tokenizer(trial, config, restored, folder)
    text = card(sweep, trial, result, config, trained, name, nemo_file.read_record(restored) or {}, merge)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for file in folder.iterdir():  # safetensors writes files that only their owner can read
        file.chmod((folder / "README.md").stat().st_mode)
    return trained


def adapter_file(trial: Trial, result: Mapping[str, object]) -> Path:
    """The adapters of the trial's last step: the file NeMo wrote at the end of training, else the last checkpoint.

    The trial's folder is searched first, since a sweep may have been moved. Raises Refused if there is neither.
    """
    checkpoints = trial.folder / "results" / "checkpoints"
    named = [Path(path) for path in (result.get("nemo"), result.get("checkpoint")) if isinstance(path, str)]
    here = [checkpoints / path.name for path in named]
    last = [*sorted(checkpoints.glob("*-last.ckpt")), *sorted(checkpoints.glob("*/*-last.ckpt"))]
    for path in (*here, *sorted(checkpoints.glob("*.nemo")), *named, *last):
        if path.is_file():
            return path
    why = "has no adapters: neither a .nemo nor a *-last.ckpt"
    raise Refused([Finding(str(checkpoints), "", why, "run the trial again in a new sweep")])


def base_name(nemo: Path) -> str:
    """The base model's name: from the record in the .nemo, else from the file name."""
    record = nemo_file.read_record(nemo) or {}
    return str(record.get("name") or nemo.name.removesuffix(".nemo"))


def write_peft(trained: Adapters, base: str, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json, as peft 0.14's save_pretrained names and shapes them."""
    weights = {}
    for module, (into, out) in trained.pairs():
        weights[f"base_model.model.{module}.lora_A.weight"] = into.clone()  # q, k and v share A; a file must not
        weights[f"base_model.model.{module}.lora_B.weight"] = out.contiguous()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    some = trained.layers if len(trained.layers) < trained.shape.layers else None
    alpha = int(trained.alpha) if trained.alpha.is_integer() else trained.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": trained.rank,
        "lora_alpha": alpha,
        "lora_dropout": trained.dropout,
        "target_modules": trained.modules,
        "layers_to_transform": some,
        "layers_pattern": "layers" if some else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Merge:
    """W + (alpha / rank) B A for the adapted weights, computed in fp32 and rounded once to the weight's type."""

    def __init__(self, trained: Adapters) -> None:
        self._pairs = {f"{module}.weight": pair for module, pair in trained.pairs()}
        self._scale = trained.alpha / trained.rank

    def __call__(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        pair = self._pairs.get(name)
        if pair is None:
            return weight
        into, out = pair
        return torch.addmm(weight.float(), out.float(), into.float(), alpha=self._scale).to(weight.dtype)


def _there(nemo: Path) -> Path:
    if not nemo.exists():
        why = "the base model of the trial does not exist here"
        raise Refused([Finding("--merge", str(nemo), why, "leave --merge out, or export on a machine with that file")])
    return nemo


def _fits(path: Path, model: nemo_to_hf.NemoModel, trained: Adapters) -> None:
    for name in ("layers", "hidden", "ffn", "heads", "query_groups", "head_dim"):
        ours, theirs = getattr(trained.shape, name), getattr(model.shape, name)
        if ours != theirs:
            why = f"is not the trial's base model: its {name} is {theirs}, the adapter's is {ours}"
            raise Refused([Finding("--merge", str(path), why, "restore the file that the trial was trained on")])


def _copy_tokenizer(trial: Trial, config: Mapping[str, Any], base: Path, folder: Path) -> None:
    """Copy the tokenizer's files, which vLLM and transformers expect beside an adapter, from the trial, the config's
    folder or the base model; not the model's config.json: with it, the folder would pass for a whole model."""
    named = (config["model"].get("tokenizer") or {}).get("type")
    sources = [trial.folder / "tokenizer", *([Path(named)] if named else [])]
    source = next((path for path in sources if path.is_dir()), None)
    if source is None:
        source = nemo_file.unpack_tokenizer(_there(base), folder / "unpacked")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
