"""Functions that change a module of somebody else's right after its import."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection
from typing import Any

ALWAYS = "always"

Patch = Callable[[Any], None]
_patches: list[tuple[str, str, Patch]] = []


def after(gap: str, module: str) -> Callable[[Patch], Patch]:
    """Register a function to run right after the import of `module`, before anybody else can take names from it.

    It runs where `gap` (one of GAPS) is missing, with "always" everywhere.
    """

    def register(patch: Patch) -> Patch:
        _patches.append((gap, module, patch))
        return patch

    return register


def hook(gaps: Collection[str]) -> None:
    """Have the functions of these gaps, and those of "always", run after the imports that are still to come."""
    import wrapt  # NeMo's own dependency

    for gap, module, patch in _patches:
        if gap in gaps or gap == ALWAYS:
            wrapt.register_post_import_hook(patch, module)


def place(name: str, **names: object) -> None:
    """Put a module of these names in sys.modules."""
    module = types.ModuleType(name, f"Stand-in of {__name__}.")
    module.__dict__.update(names)
    sys.modules[name] = module
