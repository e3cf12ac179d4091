"""Look up a dotted key in a config of plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def at(config: Mapping[str, object], key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
