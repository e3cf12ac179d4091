"""A config as plain dicts and lists: looking a dotted key up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
