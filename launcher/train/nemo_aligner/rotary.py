"""Rotary frequencies that NeMo 2.1 cannot be configured to: Llama 3.2 scales them with 32, NeMo with 8 always."""

from __future__ import annotations

from typing import Any

from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from launcher.nemo.nemo_file import ROPE_SCALING


def scale_frequencies(model: Any, config: Any) -> None:
    """Scale the frequencies of a model that was just built, where its config has a scaling of its own.

    By Megatron's own function, which has these numbers as arguments, but is only ever called with the defaults.
    """
    scaling = config.get(ROPE_SCALING)
    if scaling is None:
        return
    for module in model.modules():
        if isinstance(module, RotaryEmbedding):
            module.inv_freq = module._apply_scaling(module.inv_freq, **scaling)
