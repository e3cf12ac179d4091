"""Sets rotary frequencies that NeMo 2.1 has no option for: Llama 3.2 scales them by 32, NeMo always by 8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from omegaconf import DictConfig

from launcher.nemo.nemo_file import ROPE_SCALING

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel


def scale_frequencies(model: MegatronGPTDPOModel, config: DictConfig) -> None:
    """Scale the frequencies of a newly built model, if its config has its own scaling.

    This calls Megatron's own function, which takes these numbers but is otherwise only called with the defaults.
    """
    scaling = config.get(ROPE_SCALING)
    if scaling is None:
        return
    for module in model.modules():
        if isinstance(module, RotaryEmbedding):
            module.inv_freq = module._apply_scaling(module.inv_freq, **scaling)
