"""Megatron's own layers in place of Transformer Engine's."""

from __future__ import annotations

from typing import Any

from launcher.train.nemo_aligner.standins.registry import after

#: A norm's name as a state dict of Transformer Engine's fused layers has it -> as Megatron's own layers have it.
NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@after("transformer_engine", "nemo.collections.nlp.models.language_modeling.megatron_gpt_model")
def _local_layers(module: Any) -> None:
    """Megatron's own unfused layers, whatever the .nemo asks for, and no fusion that needs a CUDA extension."""
    module.get_specs = lambda *args, **kwargs: module.get_gpt_layer_local_spec()
    real = module.MegatronGPTModel.build_transformer_config

    def build_transformer_config(self: Any) -> Any:
        config = real(self)
        for fusion in (
            "persist_layer_norm",
            "masked_softmax_fusion",
            "gradient_accumulation_fusion",
            "bias_activation_fusion",
            "bias_dropout_fusion",
            "apply_rope_fusion",
        ):
            setattr(config, fusion, False)
        return config

    module.MegatronGPTModel.build_transformer_config = build_transformer_config


@after("transformer_engine", "megatron.core.models.gpt.gpt_layer_specs")
def _layer_norms(module: Any) -> None:
    """PyTorch's norms: Apex's, which Megatron would take where it is there, know no RMSNorm."""
    from megatron.core.transformer import torch_norm

    module.LNImpl = torch_norm.WrappedTorchNorm


@after("transformer_engine", "megatron.core.transformer.transformer_block")
def _final_norm(module: Any) -> None:
    """As above, for the norm after the last layer."""
    from megatron.core.transformer import torch_norm

    module.LayerNormImpl = torch_norm.WrappedTorchNorm


@after("transformer_engine", "megatron.core.transformer.transformer_layer")
def _norm_names(module: Any) -> None:
    """State dicts keep Transformer Engine's names, so that a .nemo is the same wherever it was written."""
    real = module.TransformerLayer.__init__

    def rename(state: dict[str, object], prefix: str, names: dict[str, str]) -> None:
        for old, new in names.items():
            if prefix + old in state:
                state[prefix + new] = state.pop(prefix + old)

    def write(layer: Any, state: dict[str, object], prefix: str, *_: object) -> None:
        rename(state, prefix, {local: fused for fused, local in NORMS.items()})

    def read(layer: Any, state: dict[str, object], prefix: str, *_: object) -> None:
        rename(state, prefix, NORMS)

    def init(self: Any, *args: object, **kwargs: object) -> None:
        real(self, *args, **kwargs)
        self.register_state_dict_post_hook(write)
        self.register_load_state_dict_pre_hook(read)

    module.TransformerLayer.__init__ = init


@after("transformer_engine", "nemo.collections.nlp.modules.common.megatron.megatron_utils")
def _no_bert(module: Any) -> None:
    """NeMo lists its BERT models at import, from a module that fails with a NameError of its own without TE."""
    module.get_megatron_pretrained_bert_models = list
