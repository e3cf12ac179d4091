"""Makes activation recomputation work with adapters: without this, Megatron cuts off their gradients.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from launcher.train.nemo_aligner.divergence import megatron_gpt

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel


def keep_gradients(model: MegatronGPTDPOModel) -> None:
    """Make the embedding's output require a gradient if activations are recomputed and the embedding is frozen.

    Megatron's CheckpointFunction, like torch's, returns outputs that require a gradient only if an input does. With
    model.activations_checkpoint_granularity=full the input of the first layers is the embedding's output, and the
    embedding, frozen with LoRA, has an output that requires none: "element 0 of tensors does not require grad".
    """
    embedding = getattr(megatron_gpt(model), "embedding", None)  # later pipeline stages have none
    if not model.cfg.get("activations_checkpoint_granularity") or embedding is None:
        return

    def require(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_() if torch.is_grad_enabled() and not output.requires_grad else output

    embedding.register_forward_hook(require)
