"""What a trial can be trained by: name in the config (key `engine`) -> module (launcher/train/engine.py)."""

from __future__ import annotations

ENGINES = {"nemo_aligner": "launcher.train.nemo_aligner.engine"}


def module_of(name: str) -> str | None:
    """The module of an engine: of one that is registered, or a dotted path itself. None where it is neither."""
    return ENGINES.get(name, name if "." in name else None)
