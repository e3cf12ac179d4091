"""From Hydra's overrides to the typed configs of the trials: composed, resolved, completed, validated."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.compose.command_line import plain
from launcher.dotted_keys import at
from launcher.findings import Finding, Refused
from launcher.nemo import lora
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.types import NO_VALUE
from launcher.trial_config.validate import validate

#: Keys that hold paths. They are made absolute, since a trial runs in whatever folder Slurm starts it.
PATHS = ("paths.models", "paths.data", "paths.runs", "paths.cache", "pretrained_checkpoint.restore_from_path")

#: What Hydra's grammar (OverrideLexer.g4) reads as an INT or a FLOAT, in its plain forms.
_NUMBER = re.compile(
    r"\+\+(?P<key>[a-z][a-z_0-9]*(\.[a-z][a-z_0-9]*)+)=(?P<number>(?P<whole>-?(0|[1-9]\d*))|-?(0|[1-9]\d*)\.\d+)",
    re.ASCII,
)
#: Resolved configs that are kept, each of some 100 kB.
_MOST_KEPT = 16
_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")


class ConfigLoader(Protocol):
    """The part of Hydra's config loader that this module uses."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig: ...


@dataclass(frozen=True)
class PlannedTrial:
    """One trial that has not been written yet: its overrides as the user wrote them, and its config."""

    overrides: list[str]
    config: TrialConfig


def trial_configs(
    config_loader: ConfigLoader,
    sweep_config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    added: frozenset[str] = frozenset(),
) -> list[PlannedTrial]:
    """Compose every trial of a sweep. Raises Refused with the findings of all of them, each named once.

    `added` are the keys that the user added with Hydra's own `+`. Hydra takes some 40 ms to compose a config, and
    trials of a sweep differ in a value or two. So trials with the same choices of config files share one composed
    config, in which the values are set for each trial.
    """
    findings: dict[Finding, None] = {}
    trials = []
    composed: dict[tuple[str, ...], ComposedConfig] = {}
    for overrides in job_overrides:
        values = {word: pair for word in overrides if (pair := _value(word)) is not None}
        choices = tuple(word for word in overrides if word not in values)
        if choices not in composed:
            composed[choices] = ComposedConfig(config_loader.load_sweep_config(sweep_config, list(choices)))
        try:
            config = checked(composed[choices].with_values(dict(values.values())), added)
            trials.append(PlannedTrial([plain(word) for word in overrides], config))
        except Refused as refused:
            findings.update(dict.fromkeys(refused.findings))
        except UnresolvedError as error:
            findings.update(dict.fromkeys(unresolved(error, added)))
    if findings:
        raise Refused(findings)
    return trials


@functools.lru_cache(maxsize=4096)
def _value(word: str) -> tuple[str, object] | None:
    """(key, value) of an override that sets a value of the trial's config; None if Hydra itself has to parse it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not word.startswith("++") or word.startswith("++hydra"):
        return None
    if match := _NUMBER.fullmatch(word):  # Hydra's parser takes 3 ms a word, and a sweep is mostly numbers
        key, text = match["key"], match["number"]
        return key, int(text) if match["whole"] else float(text)
    override = OverridesParser.create().parse_override(word)
    return override.key_or_group, override.value()


# -- resolving ---------------------------------------------------------------------------------------------------------


class UnresolvedError(Exception):
    """An interpolation cannot be resolved. Carries the config with its interpolations unresolved."""

    def __init__(self, cause: Exception, config: dict[str, object]) -> None:
        self.key = str(getattr(cause, "full_key", "") or "config")
        self.config = config
        super().__init__(str(cause).splitlines()[0])


class ComposedConfig:
    """A config that Hydra has composed, from which the plain configs of trials are made.

    OmegaConf takes some 20 ms to copy and resolve a config. That is needed once for all trials that set the same values
    at keys to which an interpolation may refer. Any other key is set in a copy of the resolved config.
    """

    def __init__(self, config: DictConfig) -> None:
        OmegaConf.set_struct(config, False)
        config.pop("hydra", None)
        self._config = config
        self._unresolved = _container(config, resolve=False)
        self._interpolations = list(_interpolations(self._unresolved))
        self._resolved: dict[str, dict[str, Any]] = {}
        """By the values that were set before the config was resolved."""

    def with_values(self, values: Mapping[str, object]) -> dict[str, object]:
        """The resolved config with these values at dotted keys. Raises UnresolvedError."""
        early = {key: value for key, value in values.items() if not self._may_be_set_afterwards(key, value)}
        late = {key: value for key, value in values.items() if key not in early}
        if any(key.startswith(f"{node}.") for node in early for key in late) or any(
            _may_refer(text, key) for text in _interpolations(early) for key in late
        ):
            early, late = dict(values), {}
        known = repr(early)  # which tells 1 from 1.0 and from True
        if known not in self._resolved:
            config = self._config.copy()
            for key, value in early.items():
                OmegaConf.update(config, key, value, merge=True, force_add=True)
            if len(self._resolved) >= _MOST_KEPT:
                self._resolved.clear()
            self._resolved[known] = _resolve(config)
        result = copy.deepcopy(self._resolved[known])
        for key, value in late.items():
            section, _, name = key.rpartition(".")
            at(result, section)[name] = value
        return result

    def _may_be_set_afterwards(self, key: str, value: object) -> bool:
        """Whether a key exists, its old and new value are plain, and no interpolation refers to it."""
        section, _, name = key.rpartition(".")
        node = at(self._unresolved, section)
        return (
            isinstance(node, dict)
            and name in node
            and _is_plain(node[name])
            and _is_plain(value)
            and not any(_may_refer(text, key) for text in self._interpolations)
        )


def _resolve(config: DictConfig) -> dict[str, object]:
    try:
        return _container(config, resolve=True)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a resolver got a string for a number
        raise UnresolvedError(error, _container(config, resolve=False)) from error


def _container(config: DictConfig, resolve: bool) -> dict[str, object]:
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=resolve))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and "${" not in value)


def _interpolations(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _interpolations(value)
    elif isinstance(node, list):
        for value in node:
            yield from _interpolations(value)
    elif isinstance(node, str) and "${" in node:
        yield node


def _may_refer(text: str, key: str) -> bool:
    """Whether a text with interpolations may depend on a key. True if in doubt: resolvers may read anything."""
    if "${" in _REFERENCE.sub("", text):
        return True
    for dots, name in _REFERENCE.findall(text):
        if dots and set(name.split(".")) & set(key.split(".")):  # relative to a node that is unknown here
            return True
        if not dots and (f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.")):
            return True
    return False


def unresolved(error: UnresolvedError, added: frozenset[str]) -> list[Finding]:
    """Why a config cannot be resolved. If a key is missing, that explains the interpolations that refer to it."""
    try:
        validate(error.config, added)
    except Refused as refused:
        keys = [finding for finding in refused.findings if not finding.value.strip("'").startswith("${")]
        if keys:
            return keys
    return [Finding(error.key, "", f"cannot be resolved ({error})", "correct the key it refers to")]


# -- completing --------------------------------------------------------------------------------------------------------


def checked(config: dict[str, object], added: frozenset[str] = frozenset()) -> TrialConfig:
    """Complete a resolved config in place and validate it. Raises Refused with every finding."""
    findings = _complete(config)
    try:
        result = validate(config, added)
    except Refused as refused:
        findings += refused.findings
    if findings:
        raise Refused(findings)
    return result


def _complete(config: dict[str, object]) -> list[Finding]:
    """Make paths absolute, translate HF's module names, and fill in keys that follow from others, all in place.

    Values of a wrong type stay as they are; the validation reports them.
    """
    for key in PATHS:
        section, _, name = key.rpartition(".")
        node = at(config, section)
        if isinstance(node, dict) and isinstance(node.get(name), (str, int, float)) and node[name] != NO_VALUE:
            node[name] = _absolute(str(node[name]))
    prefix = at(config, "model.data.data_prefix")
    for split, names in prefix.items() if isinstance(prefix, dict) else ():
        if isinstance(names, list):
            prefix[split] = [_absolute(name) if isinstance(name, str) else name for name in names]
    _fill_in(config)
    tuning = at(config, "model.peft.lora_tuning")
    modules = tuning.get("target_modules") if isinstance(tuning, dict) else None
    if isinstance(modules, list) and modules and all(isinstance(name, str) for name in modules):
        try:
            tuning["target_modules"] = lora.nemo_modules(modules)
        except Refused as refused:
            return refused.findings
    return []


def _fill_in(config: dict[str, object]) -> None:
    """Set keys that are null and follow from others.

    This is not done by interpolations: sweeping over a key that an interpolation refers to costs 20 ms a trial.
    """
    beta = at(config, "model.dpo.ref_policy_kl_penalty")
    sizes = [at(config, f"model.{kind}_model_parallel_size") for kind in ("tensor", "pipeline")]
    product = sizes[0] * sizes[1] if all(type(size) is int for size in sizes) else None
    for section, key, value in (
        ("exp_manager.wandb_logger_kwargs", "name", f"beta_{beta}"),
        ("exp_manager.mlflow_logger_kwargs.tags", "beta", beta),
        ("exp_manager.checkpoint_callback_params", "model_parallel_size", product),
    ):
        node = at(config, section)
        if isinstance(node, dict) and key in node and node[key] is None:
            node[key] = value


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
