"""From Hydra's overrides to the configs of the trials: composed, resolved, translated and held against the schema."""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.compose import schema
from launcher.compose.command_line import plain
from launcher.findings import Finding, Refused
from launcher.nemo import lora

#: Keys that hold paths; made absolute, since a trial runs wherever Slurm puts it.
PATHS = ("paths.models", "paths.data", "paths.runs", "paths.cache", "pretrained_checkpoint.restore_from_path")


#: What Hydra's grammar (OverrideLexer.g4) reads as an INT or a FLOAT, in its plain forms.
_NUMBER = re.compile(
    r"\+\+(?P<key>[a-z][a-z_0-9]*(\.[a-z][a-z_0-9]*)+)=(?P<number>(?P<whole>-?(0|[1-9]\d*))|-?(0|[1-9]\d*)\.\d+)",
    re.ASCII,
)
_REFERENCE = re.compile(r"\$\{(\.*)([\w.]+)\}")


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
    """Compose every trial of a sweep. Raises Refused with the findings of all of them, each named once.

    Hydra takes some 40 ms to compose a config, and trials of a sweep differ in a value or two. So one config is
    composed for all trials that make the same choices of config files, and only the values are set anew for each.
    """
    findings: dict[Finding, None] = {}
    trials = []
    bases: dict[tuple[str, ...], Base] = {}
    for overrides in job_overrides:
        values = {word: pair for word in overrides if (pair := _value(word)) is not None}
        choices = tuple(word for word in overrides if word not in values)
        if choices not in bases:
            bases[choices] = Base(config_loader.load_sweep_config(sweep_config, list(choices)))
        config, found = bases[choices].resolved(dict(values.values()), forced)
        findings.update(dict.fromkeys(found))
        trials.append(TrialConfig([plain(word) for word in overrides], config))
    if findings:
        raise Refused(findings)
    return trials


@functools.lru_cache(maxsize=4096)
def _value(word: str) -> tuple[str, Any] | None:
    """(key, value) of an override that sets a value of the trial's config; None where Hydra itself has to read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not word.startswith("++") or word.startswith("++hydra"):
        return None
    if found := _NUMBER.fullmatch(word):  # Hydra's parser takes 3 ms a word, and a sweep is mostly numbers
        key, text = found["key"], found["number"]
        return key, int(text) if found["whole"] else float(text)
    override = OverridesParser.create().parse_override(word)
    return override.key_or_group, override.value()


class Base:
    """A composed config, resolved again and again with other values.

    OmegaConf resolves a config in some 15 ms, nearly all of it parsing interpolations. Of those only the ones that
    lead to a changed key can come out differently, so only they are resolved anew, and of those only the ones that
    call a resolver by OmegaConf; anything out of the ordinary (a value that is no scalar, a change that brings
    findings) goes the whole way.
    """

    def __init__(self, composed: DictConfig) -> None:
        OmegaConf.set_struct(composed, False)
        composed.pop("hydra", None)
        self._composed = composed
        self._live = composed.copy()  # the one whose values are set in place
        self._first: dict[str, Any] | None = None  # the values of the trial that went the whole way
        self._config = b""  # its resolved config, pickled: the fastest deep copy there is
        self._references: dict[str, set[str]] = {}
        self._texts: dict[str, list[str]] = {}
        self._led: dict[frozenset[str], list[str]] = {}

    def resolved(self, values: dict[str, Any], forced: frozenset[str]) -> tuple[dict[str, Any], list[Finding]]:
        if self._first is None or self._first.keys() != values.keys():
            return self._whole(values, forced)
        changed = {key: value for key, value in values.items() if value != self._first[key]}
        if any(not _scalar(value) or not _scalar(self._first[key]) for key, value in changed.items()):
            return self._whole(values, forced)
        config = pickle.loads(self._config)
        led = self._leading_to(frozenset(changed))
        if not all(key in changed or key in self._texts for key in led):
            for key, value in values.items():
                OmegaConf.update(self._live, key, value, merge=True, force_add=True)
        for key in led:
            parent, _, name = key.rpartition(".")
            try:
                if key in changed:
                    value = changed[key]
                elif key in self._texts:
                    value = _filled(self._texts[key], config)
                else:
                    value = OmegaConf.select(self._live, key)
                node = _node(config, parent) if parent else config
            except (KeyError, TypeError):  # a name with a dot in it, such as MLflow's tags have; an element of a list
                return self._whole(values, forced)
            if isinstance(value, (dict, list)) or OmegaConf.is_config(value) or name not in node:
                return self._whole(values, forced)
            node[name] = value
        findings = schema.check(config, forced) or _finish(config)
        return self._whole(values, forced) if findings else (config, [])

    def _whole(self, values: dict[str, Any], forced: frozenset[str]) -> tuple[dict[str, Any], list[Finding]]:
        composed = self._composed.copy()
        for key, value in values.items():
            OmegaConf.update(composed, key, value, merge=True, force_add=True)
        config, findings = resolve(composed, forced)
        if not findings:
            self._first, self._config = values, pickle.dumps(OmegaConf.to_container(composed, resolve=True))
            unresolved = OmegaConf.to_container(composed, resolve=False)
            self._references, self._texts = dict(_references(unresolved)), dict(_texts(unresolved))
            self._live, self._led = composed, {}
        return config, findings

    def _leading_to(self, changed: frozenset[str]) -> list[str]:
        """The changed keys and every key whose interpolations lead to one of them, each after those it refers to."""
        if changed not in self._led:
            reached = set(changed)
            more = reached
            while more:
                more = {key for key, names in self._references.items() if key not in reached and _meet(names, reached)}
                reached |= more
            left, ordered = sorted(reached), []
            while left:
                free = [key for key in left if key not in self._texts or key in changed]
                free = free or [key for key in left if not _meet(self._references[key], set(left) - {key})] or left
                ordered += free
                left = [key for key in left if key not in free]
            self._led[changed] = ordered
        return self._led[changed]


def _references(node: Any, key: str = "") -> Iterator[tuple[str, set[str]]]:
    """(key, the keys it refers to) of every leaf with an interpolation; `${.x}` is relative to the leaf's parent."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from _references(value, f"{key}.{name}" if key else str(name))
    if isinstance(node, str) and "${" in node:
        if key.rpartition(".")[2].isdigit():
            key = key.rpartition(".")[0]  # an element: the list is what is looked up
        names = set()
        for dots, rest in _REFERENCE.findall(node):
            names.add(_absolute(dots, rest, key))
        yield key, names or {""}  # nothing understood: it may lead anywhere


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, list[str]]]:
    """(key, [text, key, text, ..., key, text]) of every leaf that refers to other keys, by their names alone."""
    for name, value in node.items():
        below = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict):
            yield from _texts(value, below)
        elif isinstance(value, str) and "${" in value and "\\" not in value:
            parts = _REFERENCE.split(value)
            pieces = [parts[0]]
            for dots, rest, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
                pieces += [_absolute(dots, rest, below), text]
            if not any("${" in text for text in pieces[::2]):
                yield below, pieces


def _absolute(dots: str, rest: str, key: str) -> str:
    """The key that `${.rest}` means in the value of `key`."""
    return ".".join([*(key.split(".")[: -len(dots)] if dots else []), rest])


def _filled(pieces: list[str], config: dict[str, Any]) -> Any:
    """A leaf's value: that of the one key it refers to, or a text with the values in it."""
    values = [_node(config, key) for key in pieces[1::2]]
    if any(isinstance(value, (dict, list)) for value in values):
        raise TypeError("not a scalar")
    if len(pieces) == 3 and not pieces[0] and not pieces[2]:
        return values[0]
    return "".join(text + value for text, value in zip(pieces[::2], [*map(str, values), ""], strict=True))


def _meet(names: set[str], keys: set[str]) -> bool:
    """Whether a name is one of the keys, holds one or lies in one; the empty name holds all."""
    return any(
        not name or name == key or name.startswith(key + ".") or key.startswith(name + ".")
        for name in names
        for key in keys
    )


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and "${" not in value)


def resolve(composed: DictConfig, forced: frozenset[str] = frozenset()) -> tuple[dict[str, Any], list[Finding]]:
    """One composed config as plain data without Hydra's node, and everything that is wrong with it."""
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    try:
        config = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a resolver was given a text for a number
        config = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=False))
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
    for split, names in prefix.items():
        prefix[split] = [name if is_weight(name) else str(Path(name).expanduser().absolute()) for name in names]
    tuning = config["model"]["peft"]["lora_tuning"]
    try:
        tuning["target_modules"] = lora.nemo_modules(tuning["target_modules"])
    except Refused as refused:
        return refused.findings
    return []


def is_weight(name: str) -> bool:
    """Whether an entry of data_prefix is a weight: NeMo blends [weight, file, weight, file, ...]."""
    return name.replace(".", "", 1).isdigit()


def _node(config: dict[str, Any], dotted: str) -> dict[str, Any]:
    for name in dotted.split("."):
        config = config[name]
    return config
