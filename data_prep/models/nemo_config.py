"""A Llama's model_config.yaml: HF's architecture in the keys of NeMo 2.1's MegatronGPTModel. Needs no torch.

Key names and meanings: NeMo 2.1's megatron_base_model.py and megatron_gpt_model.py (build_transformer_config,
model_provider_func, mcore_model_customize). What belongs to a trial (batch sizes, data, optimizer) a trial sets.
"""

from __future__ import annotations

from typing import Any

from data_prep.models.llama_shape import LLAMA31, LlamaShape
from launcher.nemo.nemo_file import ROPE_SCALING, TOKENIZER_FOLDER

# NeMo refers to files inside a .nemo as "nemo:NAME", but it does not resolve the path of an HF tokenizer that way: code
# that restores the model must unpack the folder and set model.tokenizer.type to its path. Until then this name fails at
# once and clearly (transformers: "Incorrect path_or_model_id"), also offline: no folder or hub model has such a name.
TOKENIZER_INSIDE = f"nemo:{TOKENIZER_FOLDER}"

MOST_TENSOR_PARALLEL = 8


def model_config(shape: LlamaShape, tokens: int, precision: str) -> dict[str, object]:
    """The `model` tree of a .nemo; `tokens` is len(tokenizer), `precision` "32" or "bf16"."""
    config: dict[str, Any] = {
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
        "mcore_gpt": True,
        "transformer_engine": True,
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "sequence_parallel": False,
        "encoder_seq_length": shape.positions,
        "max_position_embeddings": shape.positions,
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.query_groups,
        "kv_channels": shape.head_dim,
        "init_method_std": shape.init_std,
        "use_scaled_init_method": True,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "ffn_dropout": 0.0,
        "apply_query_key_layer_scaling": False,
        "normalization": "rmsnorm",
        "layernorm_epsilon": shape.norm_eps,
        "do_layer_norm_weight_decay": False,
        "make_vocab_size_divisible_by": vocab_divisor(shape.vocab, tokens),
        "pre_process": True,
        "post_process": True,
        "persist_layer_norm": True,
        "bias": False,
        "qkv_bias": shape.qkv_bias,
        "activation": "fast-swiglu",
        "transformer_block_type": "pre_ln",
        "normalize_attention_scores": True,
        "attention_type": "multihead",
        "share_embeddings_and_output_weights": shape.tied,
        "tokenizer": {
            "library": "huggingface",
            "type": TOKENIZER_INSIDE,
            "model": None,
            "vocab_file": None,
            "merge_file": None,
            "use_fast": True,
        },
        "precision": 32 if precision == "32" else precision,
        "megatron_amp_O2": False,
        "native_amp_init_scale": 2**32,
        "native_amp_growth_interval": 1000,
        "hysteresis": 2,
        "fp32_residual_connection": False,
        "fp16_lm_cross_entropy": False,
        "grad_allreduce_chunk_size_mb": 125,
        "grad_div_ar_fusion": True,
        "gradient_accumulation_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_add_fusion": False,
        "masked_softmax_fusion": True,
        "get_attention_mask_from_fusion": True,
        "gradient_as_bucket_view": True,
        "activations_checkpoint_granularity": None,
        "activations_checkpoint_method": None,
        "activations_checkpoint_num_layers": None,
        "activations_checkpoint_layers_per_pipeline": None,
        "num_micro_batches_with_partial_activation_checkpoints": None,
        "use_cpu_initialization": False,
        "dist_ckpt_format": "torch_dist",
        "optim": {"name": "fused_adam"},  # NeMo requires the key; a trial sets its content
        "resume_from_checkpoint": None,
        "seed": 1234,
    }
    return config | rotary_config(shape)


def rotary_config(shape: LlamaShape) -> dict[str, object]:
    """Rotary embeddings: base, scaling of the frequencies, linear interpolation of the positions.

    NeMo 2.1 can scale with Llama 3.1's numbers only. Other numbers are stored under a key of this project, which
    launcher/train/nemo_aligner/rotary.py reads when the model is built.
    """
    config: dict[str, Any] = {
        "position_embedding_type": "rope",
        "rotary_percentage": 1.0,
        "rotary_interleaved": False,
        "rotary_base": shape.rope_theta,
        "scale_positional_embedding": shape.rope_scaling == LLAMA31,
        "seq_len_interpolation_factor": shape.rope_linear,
    }
    if shape.rope_scaling is not None and shape.rope_scaling != LLAMA31:
        config[ROPE_SCALING] = shape.rope_scaling._asdict()
    return config


def vocab_divisor(vocab: int, tokens: int) -> int:
    """make_vocab_size_divisible_by such that NeMo's padded vocabulary has exactly the HF embedding's rows.

    NeMo rounds len(tokenizer) up to a multiple of divisor x tensor parallel size. Every row beyond HF's would enter the
    softmax with a logit of its own and shift all log-probabilities, so there must be none, if possible not even with
    tensor parallelism of up to 8 (128,256 tokens: divisor 32; NeMo's usual 128 pads from TP=4 on).
    Raises ValueError if the tokenizer has more tokens than the embedding has rows.
    """
    if tokens > vocab:
        raise ValueError(f"the tokenizer has {tokens} tokens, the embedding {vocab} rows")

    def exact(divisor: int, most_parallel: int) -> bool:
        """Whether the padded vocabulary is the embedding's with tensor parallelism of 1, 2, ... most_parallel."""
        sizes = [size for size in (1, 2, 4, MOST_TENSOR_PARALLEL) if size <= most_parallel]
        return all(-(-tokens // (divisor * size)) * divisor * size == vocab for size in sizes)

    powers: list[int] = [2**n for n in range(7, -1, -1)]
    for most_parallel in (MOST_TENSOR_PARALLEL, 4, 2, 1):
        for divisor in powers:
            if exact(divisor, most_parallel):
                return divisor
    # The rows exceed the tokens by more than any power of two covers: use the smallest divisor of the rows that does.
    return next(divisor for divisor in range(vocab - tokens + 1, vocab + 1) if exact(divisor, 1))
