"""Rotary frequencies computed from a config.json's own text, for the proof.

The installed transformers may misread a config (4.48 reads one of transformers 5 as theta 10,000, unscaled), and so may
llama_shape. The proof relies on neither: it reads the file independently here, and HF's model gets the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def frequencies(folder: Path) -> torch.Tensor:
    """[half of the head's dimensions], fp32. Raises ValueError for an unknown scaling."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    rope |= config.get("rope_parameters") or {}
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = float(rope["rope_theta"] or 10000.0)
    plain: torch.Tensor = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / float(rope["factor"])
    if kind == "llama3":
        return torch.stack([_scaled(frequency, rope) for frequency in plain])
    raise ValueError(f"rope_type {kind} is not known")


def _scaled(frequency: torch.Tensor, rope: Mapping[str, float]) -> torch.Tensor:
    """Llama 3.1's scaling: slow frequencies are divided by the factor, fast ones kept, those between interpolated."""
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # in the original context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * frequency / rope["factor"] + share * frequency


def set_frequencies(rotary: Any, folder: Path) -> None:
    """Give transformers' rotary embedding these frequencies in place of those that it read itself."""
    rotary.inv_freq = rotary.original_inv_freq = frequencies(folder)
    rotary.rope_type, rotary.attention_scaling = "default", 1.0
