"""The files of pairs that NeMo-Aligner reads: blends of them, packs, and how many rows they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def is_weight(name: str) -> bool:
    """Whether an entry of data_prefix is a weight: NeMo blends [weight, file, weight, file, ...]."""
    return name.replace(".", "", 1).isdigit()


def files(prefix: Sequence[str]) -> list[Path]:
    """The files among the entries of a split's data_prefix, without the weights of a blend."""
    return [Path(name) for name in prefix if not (is_weight(name) and len(prefix) > 1)]
