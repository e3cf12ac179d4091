"""The README.md of an exported model, in the form of Hugging Face's model cards: its origin and its figures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from data_prep.models import small_models
from launcher import redact, whole_file
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

if TYPE_CHECKING:
    from data_prep.models.adapters import Adapters

_METRICS = {
    "val/loss": "DPO loss",
    "val/acc": "accuracy (chosen above rejected)",
    "val/rewards_chosen_mean": "log-ratio to the reference, chosen (nats per response, not multiplied by beta)",
    "val/rewards_rejected_mean": "log-ratio to the reference, rejected",
}


def card(
    sweep: Sweep,
    trial: Trial,
    result: Mapping[str, Any],
    config: Mapping[str, Any],
    adapters: Adapters,
    base: str,
    record: Mapping[str, Any],
    merged: bool,
) -> str:
    """`record` is the record in the base model's .nemo of how it was made, {} if there is none."""
    licence = licence_of(record)
    head: dict[str, Any] = {"base_model": base, "library_name": "transformers" if merged else "peft"}
    if licence:
        head["license"] = licence
    head["tags"] = ["dpo", *([] if merged else ["lora"])]
    front = yaml.safe_dump(head, sort_keys=False)
    rows = [
        *_model(base, licence, record, adapters, merged),
        *_training(result, config),
        *data(config),
        ("trained", str(result.get("finished", "?"))),
        ("with", ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())),
        ("sweep", f"{sweep.data['id']}, trial {trial.number}{_commit(sweep)}"),
    ]
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)
    title = f"{base}, DPO with beta {result['beta']:g}"
    return "\n".join(
        [
            f"---\n{front}---\n",
            f"# {title}\n",
            f"Trained with NVIDIA NeMo-Aligner by Direct Preference Optimization (arXiv 2305.18290).{_use(merged)}\n",
            f"| | |\n| --- | --- |\n{table}\n",
            f"## Held-out pairs\n\n| | before training | after |\n| --- | --- | --- |\n{_metrics(result)}\n",
            f"## Command\n\n    {shlex.join(redact.command(sweep.data['command']))}\n\nThe overrides of this trial: "
            f"`{shlex.join(redact.command(trial.overrides)) or 'no overrides'}`\n",
        ]
    )


def licence_of(record: Mapping[str, Any]) -> str:
    """The licence of the base model; "" if unknown."""
    return str(record.get("licence") or small_models.LICENCES.get(str(record.get("name")), ""))


def data(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One row for each training and validation file: name, source, number of pairs and SHA-256."""
    for split in ("train", "validation"):
        for path in map(Path, config["model"]["data"]["data_prefix"].get(split) or ()):
            described, entry = _described(path)
            known = f", {entry['rows']} pairs" if "rows" in entry else ""
            sha = entry.get("sha256") or (whole_file.sha256(path) if path.is_file() else "")
            yield f"{split} data", f"{described}{path.name}{known}, SHA-256 {sha or 'unknown: the file is missing'}"


def _described(path: Path) -> tuple[str, dict[str, Any]]:
    """From dataset.json beside the file: the source, and this file's entry (rows, hash) if it is unchanged."""
    try:
        record = json.loads((path.parent / "dataset.json").read_text(encoding="utf-8"))
        entry = dict(record.get("files", {}).get(path.name) or {})
        source = str((record.get("source") or {}).get("name") or "")
        if path.exists() and entry.get("bytes") != path.stat().st_size:
            entry = {}  # the file has changed since dataset.json was written
    except (OSError, ValueError, AttributeError, TypeError):
        return "", {}
    return f"{source}: " if source else "", entry


def _model(
    base: str, licence: str, record: Mapping[str, Any], adapters: Adapters, merged: bool
) -> Iterator[tuple[str, str]]:
    source = str(record.get("source") or "")
    yield "base model", f"{base}{f' (fingerprint {source[:16]})' if source and '/' not in source else ''}"
    yield "licence of the base model", licence or "unknown"
    yield (
        "LoRA",
        f"rank {adapters.rank}, alpha {adapters.alpha:g} on {', '.join(adapters.modules)}, "
        f"{len(adapters.layers)} of {adapters.shape.layers} layers{', merged into the base' if merged else ''}",
    )


def _training(result: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = config["model"]
    optim = model.get("optim") or {}
    yield "beta", f"{result['beta']:g} ({model['dpo'].get('preference_loss', 'dpo')} loss)"
    yield "steps", f"{result['steps']} of {model['global_batch_size']} pairs, {result['consumed_samples']} pairs seen"
    yield (
        "learning rate",
        f"{optim.get('lr')} ({optim.get('name')}, {(optim.get('sched') or {}).get('name', 'constant')})",
    )
    yield "sequence length, seed", f"{model['encoder_seq_length']} tokens, {model.get('seed')}"
    yield "precision, device", f"{result.get('precision')}, {result.get('device')}, ranks: {result.get('ranks')}"


def _metrics(result: Mapping[str, Any]) -> str:
    before, after = dict(result.get("baseline") or {}), result.get("final") or {}
    before.pop("val/acc", None)  # all log-ratios are 0 then: it has no meaning
    lines = [f"| {title} | {_number(before.get(key))} | {_number(after.get(key))} |" for key, title in _METRICS.items()]
    divergence = ((result.get("evaluation") or {}).get("kl_per_token") or {}).get("mean")
    if divergence is not None:
        lines.append(f"| KL to the reference (nats per token) | 0 | {divergence:.4f} |")
    return "\n".join([*lines, f"| pairs | {before.get('val/pairs', '?')} | {after.get('val/pairs', '?')} |"])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "-"


def _commit(sweep: Sweep) -> str:
    git = sweep.data.get("git")
    return f", launcher {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""


def _use(merged: bool) -> str:
    if merged:
        return " A whole model: load the folder with transformers or vLLM."
    return " A LoRA adapter: load the folder with `peft`, or with vLLM's `--lora-modules`."


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
