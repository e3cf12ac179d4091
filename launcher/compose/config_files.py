"""The config files: where they are, the groups and their choices, and every key that they set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
    found: set[str] = set()
    for path in config_root().rglob("*.yaml"):
        found.update(_leaves(yaml.load(path.read_text(), Loader=loader), ""))
    return {key for key in found if not key.startswith(("defaults", "hydra."))}


def _leaves(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix
