"""From Hydra's overrides to the configs of the trials: composed, resolved, translated and held against the schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher import lora, schema
from launcher.findings import Finding, Refused
from launcher.overrides import plain

#: Keys that hold paths; made absolute, since a trial runs wherever Slurm puts it.
PATHS = ("paths.models", "paths.data", "paths.runs", "pretrained_checkpoint.restore_from_path")


@dataclass(frozen=True)
class TrialConfig:
    """One trial to be: its overrides as the user wrote them and its whole config, resolved, in NeMo's own names."""

    overrides: list[str]
    config: dict[str, Any]


def register_resolvers() -> None:
    """The two arithmetic resolvers that NeMo-Aligner's own configs use."""
    OmegaConf.register_new_resolver("multiply", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("int_div", lambda a, b: a // b, replace=True)


def trial_configs(
    config_loader: Any,
    sweep_config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    forced: frozenset[str] = frozenset(),
) -> list[TrialConfig]:
    """Compose every trial of a sweep. Raises Refused with the findings of all of them, each named once."""
    findings: dict[Finding, None] = {}
    trials = []
    for overrides in job_overrides:
        composed = config_loader.load_sweep_config(sweep_config, list(overrides))
        config, found = resolve(composed, forced)
        findings.update(dict.fromkeys(found))
        trials.append(TrialConfig([plain(o) for o in overrides], config))
    if findings:
        raise Refused(findings)
    return trials


def resolve(composed: DictConfig, forced: frozenset[str] = frozenset()) -> tuple[dict[str, Any], list[Finding]]:
    """One composed config as plain data without Hydra's node, and everything that is wrong with it."""
    composed = composed.copy()
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    try:
        config = OmegaConf.to_container(composed, resolve=True)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a resolver was given a text for a number
        config = OmegaConf.to_container(composed, resolve=False)
        key = str(getattr(error, "full_key", "") or "config")
        broken = Finding(key, "", f"cannot be resolved ({str(error).splitlines()[0]})", "correct the key it refers to")
        found = [f for f in schema.check(config, forced) if not f.value.strip("'").startswith("${")]
        return config, found or [broken]  # a key that is missing explains what refers to it
    findings = schema.check(config, forced)
    if not findings:
        findings = _finish(config)
    return config, findings


def _finish(config: dict[str, Any]) -> list[Finding]:
    """Paths made absolute and HF's LoRA module names translated, in place."""
    for key in PATHS:
        parent, _, name = key.rpartition(".")
        node = _node(config, parent)
        node[name] = str(Path(str(node[name])).expanduser().absolute())
    prefix = config["model"]["data"]["data_prefix"]
    for split, files in prefix.items():
        prefix[split] = [str(Path(file).expanduser().absolute()) for file in files]
    tuning = config["model"]["peft"]["lora_tuning"]
    try:
        tuning["target_modules"] = lora.nemo_modules(tuning["target_modules"])
    except Refused as refused:
        return refused.findings
    return []


def _node(config: dict[str, Any], dotted: str) -> dict[str, Any]:
    for name in dotted.split("."):
        config = config[name]
    return config
