"""From plain data to a TrialConfig, or to findings: each with the key, its value, what is allowed, what the key does.

Keys that other NeMo files have and NeMo-Aligner's DPO does not are answered with the key to use instead (HABITS).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from launcher.dotted_keys import at
from launcher.findings import Finding, Refused
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.types import NO_VALUE, Section, allowed

#: Habits from other NeMo files (SFT, NeMo-Framework-Launcher, HF) -> what to use here.
HABITS: dict[str, str] = {
    "model.restore_from_path": "use pretrained_checkpoint.restore_from_path",
    "model.data.train_ds": "use model.data.data_prefix.train=[FILE]",
    "model.data.validation_ds": "use model.data.data_prefix.validation=[FILE]",
    "model.data.test_ds": "use model.data.data_prefix.test=[FILE]",
    "model.dpo.loss_type": "use model.dpo.preference_loss (dpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl)",
    "model.dpo.beta": "use model.dpo.ref_policy_kl_penalty",
    "model.peft.lora_tuning.dropout": "use model.peft.lora_tuning.adapter_dropout",
    "model.peft.lora_tuning.rank": "use model.peft.lora_tuning.adapter_dim",
    "model.peft.lora_tuning.r": "use model.peft.lora_tuning.adapter_dim",
    "lora_tuning.dropout": "use model.peft.lora_tuning.adapter_dropout",
    "lora_tuning": "use model.peft.lora_tuning",
    "trainer.val_check_interval": "use trainer.dpo.val_check_interval",
    "trainer.save_interval": "use trainer.dpo.save_interval",
    "trainer.limit_val_batches": "use trainer.dpo.limit_val_batches",
    "trainer.limit_train_batches": "use trainer.dpo.limit_train_batches",
    "trainer.gradient_clip_val": "use trainer.dpo.gradient_clip_val",
    "trainer.gpus": "use trainer.devices",
    "model.data.seq_len": "use model.encoder_seq_length",
    "model.optim.sched.warmup_ratio": "use model.optim.sched.warmup_steps",
}


def validate(config: dict[str, object], added: frozenset[str] = frozenset()) -> TrialConfig:
    """Check one trial's resolved config. Raises Refused with every finding.

    `added` are the keys that the user added with Hydra's own `+` or `++`. Under `model` these may be unknown here,
    since NeMo hands them to the base model's config.
    """
    try:
        checked = TrialConfig.model_validate(config)
    except ValidationError:
        checked = _without_added_keys(config, added)
    checked._plain = config
    return checked


def _without_added_keys(config: dict[str, object], added: frozenset[str]) -> TrialConfig:
    """The same, for a config with keys that are unknown here or values that are not allowed."""
    known = copy.deepcopy(config)
    unknown = list(_remove_unknown(known, TrialConfig))
    findings = [_unknown(key, value) for key, value in unknown if not _may_be_added(key, added)]
    checked = None
    try:
        checked = TrialConfig.model_validate(known)
    except ValidationError as error:
        kinds: dict[str, str] = {}
        for wrong in error.errors(include_url=False, include_context=False, include_input=False):
            kinds.setdefault(_key(wrong["loc"]), wrong["type"])
        findings += [_wrong(key, kind, at(known, key)) for key, kind in kinds.items()]
    if findings or checked is None:
        raise Refused(findings)
    return checked


def load(trial_folder: Path) -> TrialConfig:
    """The config of a trial that was written earlier. Raises Refused, and OSError where there is none."""
    text = (trial_folder / "config.yaml").read_bytes()
    return validate(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), frozenset({"model"}))


def leaves(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf; lists are leaves, and empty nodes have none."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def fields(section: type[Section] = TrialConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key that has a value of its own."""
    for name, field in section.model_fields.items():
        below = _section(field)
        if below is None:
            yield f"{prefix}{name}", field
        else:
            yield from fields(below, f"{prefix}{name}.")


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _remove_unknown(
    config: dict[str, object], section: type[Section], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Remove the keys that no field stands for; gives (dotted key, value) of the leaves that go."""
    for name in list(config):
        field = section.model_fields.get(str(name))
        key = f"{prefix}{name}"
        if field is None:
            value = config.pop(name)
            yield from leaves(value, f"{key}.") if isinstance(value, dict) else [(key, value)]
        elif (below := _section(field)) is not None and isinstance(node := config[name], dict):
            yield from _remove_unknown(node, below, f"{key}.")


def _may_be_added(key: str, added: frozenset[str]) -> bool:
    return key.startswith("model.") and any(key == name or key.startswith(f"{name}.") for name in added)


def _key(location: Sequence[int | str]) -> str:
    """The key that an error of pydantic is about; its location goes on with places in lists and parts of unions."""
    section: type[Section] | None = TrialConfig
    names = []
    for name in location:
        if section is None or name not in section.model_fields:
            break
        names.append(str(name))
        section = _section(section.model_fields[str(name)])
    return ".".join(names)


def _field_at(key: str) -> FieldInfo:
    *parents, last = key.split(".")
    section: type[Section] = TrialConfig
    for name in parents:
        below = _section(section.model_fields[name])
        assert below is not None, key
        section = below
    return section.model_fields[last]


def _wrong(key: str, kind: str, value: object) -> Finding:
    field = _field_at(key)
    if kind == "missing":
        return Finding(key, "", "is missing", "do not delete it; it has no default elsewhere")
    if value == NO_VALUE:
        return Finding(key, "", "has no value", f"give one: {key}=..., {allowed(field)}")
    return Finding(key, _shown(value), f"must be {allowed(field)}", field.description or "")


def _unknown(key: str, value: object) -> Finding:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        habit = HABITS.get(".".join(parts[:end]))
        if habit:
            return Finding(key, _shown(value), "NeMo-Aligner's DPO has no such key", habit)
    known = [name for name, _ in fields()]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not near:  # the right name in the wrong place
        near = [name for name in known if name.rpartition(".")[2] == parts[-1]][:1]
    remedy = f"did you mean {near[0]}?" if near else "see launcher/trial_config for all keys"
    return Finding(key, _shown(value), "no such key", remedy)


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)[:80]
