"""The config files: where they are, the groups and their choices, and every key that they set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from launcher.findings import Finding

_PACKAGE = Path(__file__).resolve().parents[1]


def config_root() -> Path:
    """The folder of the configs: beside the package in a clone, inside the package if it is installed."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def groups() -> dict[str, list[str]]:
    """{config group: its choices}, such as model: [llama3_8b, smollm2_135m, tiny]."""
    folders = sorted(path for path in config_root().iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def keys() -> set[str]:
    """Every key that some config file sets, as an override writes it: model.dpo.ref_policy_kl_penalty."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    keys: set[str] = set()
    for path in config_root().rglob("*.yaml"):
        keys.update(_leaves(yaml.load(path.read_text(), Loader=loader), ""))
    return {key for key in keys if not key.startswith(("defaults", "hydra."))}


def base_60_numbers(folders: Iterable[Path]) -> list[Finding]:
    """Unquoted `4:00:00` in config files: YAML 1.1 reads it as a number of base 60, here 14400.

    So a time limit of four hours would become one of ten days.
    """
    findings = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if _BASE_60.search(text):
            findings += [
                Finding(f"{path}:{line}", value, "is a number to YAML, not a time", f'put it in quotes: "{value}"')
                for line, value in _base_60(text)
            ]
    return findings


_BASE_60 = re.compile(r"\d:\d")


def _base_60(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each such number."""
    import yaml

    try:
        nodes = [yaml.compose(text, Loader=yaml.SafeLoader)]
    except yaml.YAMLError:
        return  # Hydra reports it, if it reads the file
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.ScalarNode) and ":" in node.value and node.tag.endswith((":int", ":float")):
            yield node.start_mark.line + 1, node.value


def _leaves(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix
