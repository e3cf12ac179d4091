"""The keys of NeMo's GPT models, in a .nemo's model_config.yaml and below `model` of a trial, that are read here."""

from __future__ import annotations

from typing import Final, TypedDict

#: Keys by which whoever made a .nemo divided his work, and their values where nothing is divided. A trial takes none of
#: them from the .nemo: it has other ranks.
DIVISION: Final[dict[str, object]] = {
    "context_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "sequence_parallel": False,
    "fsdp": False,
    "ub_tp_comm_overlap": False,
}


class Tokenizer(TypedDict, total=False):
    """`tokenizer`."""

    type: str
    library: str
    model: str
    vocab_file: str
    merge_file: str


class GptConfig(TypedDict, total=False):
    """A model's config. Any key may be absent from other converters' files; see BaseModel.shaped."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int | None
    kv_channels: int | None
    qkv_bias: bool | None
    share_embeddings_and_output_weights: bool
    encoder_seq_length: int
    max_position_embeddings: int | None
    position_embedding_type: str
    rotary_base: float
    seq_len_interpolation_factor: float | None
    scale_positional_embedding: bool
    rope_scaling: dict[str, float] | None
    layernorm_epsilon: float
    init_method_std: float
    make_vocab_size_divisible_by: int | None
    override_vocab_size: int | None
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    sequence_parallel: bool
    activations_checkpoint_granularity: str | None
    activations_checkpoint_method: str | None
    activations_checkpoint_num_layers: int | None
    tokenizer: Tokenizer
