"""`model` and `pretrained_checkpoint`: the policy, its adapter, the optimizer, the data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.trial_config.preference_loss import Loss
from launcher.trial_config.types import AlwaysTrue, FreeKeys, Layers, OneFile, Rates, Section, Text, Texts

Initialization = Literal["xavier", "zero", "normal", "kaiming"]


class PretrainedCheckpoint(Section):
    """`pretrained_checkpoint`."""

    restore_from_path: Text = Field(description="the base model, a .nemo file")


class LoraTuning(Section):
    """`model.peft.lora_tuning`."""

    target_modules: Texts = Field(description="HF's seven projections or NeMo's fused modules")
    adapter_dim: int = Field(ge=1, description="rank of the adapters")
    alpha: float = Field(gt=0, description="adapters are scaled by alpha / adapter_dim")
    adapter_dropout: float = Field(ge=0, lt=1)
    column_init_method: Initialization
    row_init_method: Initialization
    layer_selection: Layers | None = Field(description="the layers that get adapters; null: all")
    weight_tying: bool
    position_embedding_strategy: Text | None


class AdapterCheckpoint(Section):
    """`model.peft.restore_from_ckpt`."""

    checkpoint_dir: Text | None
    checkpoint_name: Text | None


class Peft(Section):
    """`model.peft`."""

    peft_scheme: Literal["lora", "none"]
    restore_from_path: Text | None
    restore_from_ckpt: AdapterCheckpoint
    lora_tuning: LoraTuning


class Schedule(Section):
    """`model.optim.sched`. Steps are optimizer steps."""

    name: Literal["CosineAnnealing", "WarmupHoldPolicy", "WarmupAnnealing", "InverseSquareRootAnnealing"]
    warmup_steps: int = Field(ge=0, description="steps")
    constant_steps: int = Field(ge=0, description="steps at min_lr at the end")
    min_lr: float = Field(ge=0)
    max_steps: int | None = Field(None, ge=1, description="length of the schedule; the trial's own where not given")


class Optimizer(Section):
    """`model.optim`."""

    name: Literal["fused_adam", "adamw", "distributed_fused_adam", "mcore_distributed_optim"]
    lr: float = Field(gt=0, description="highest learning rate")
    weight_decay: float = Field(ge=0)
    betas: Rates = Field(description="Adam's two decay rates (not DPO's beta)")
    eps: float | None = Field(None, gt=0)
    bucket_cap_mb: int | None = Field(None, ge=1, description="distributed_fused_adam only")
    overlap_grad_sync: bool | None = Field(None, description="distributed_fused_adam only")
    overlap_param_sync: bool | None = Field(None, description="distributed_fused_adam only")
    contiguous_grad_buffer: bool | None = Field(None, description="distributed_fused_adam only")
    sched: Schedule


_ONE_FILE = "NeMo-Aligner's DPO takes no blend: write the pairs into one file"


class DataFiles(Section):
    """`model.data.data_prefix`. NeMo takes blends there, NeMo-Aligner's DPO one file; see nemo/data_files.py."""

    train: OneFile = Field(description=_ONE_FILE)
    validation: OneFile = Field(description=_ONE_FILE)
    test: OneFile = Field(description=_ONE_FILE)


class Data(Section):
    """`model.data`."""

    data_impl: Literal["jsonl", "packed_jsonl"]
    splits_string: None = Field(description="train, validation and test are files of their own")
    seq_length: int = Field(ge=8, description="tokens; follows model.encoder_seq_length")
    pad_length_to_multiple_of: int | None = Field(None, ge=1, description="tokens")
    skip_warmup: bool
    num_workers: int = Field(ge=0)
    reset_position_ids: bool
    reset_attention_mask: bool
    eod_mask_loss: bool
    index_mapping_dir: Text | None
    append_eod: bool = Field(description="end each response with the end-of-text token")
    data_prefix: DataFiles
    default_chosen_reward: float
    default_rejected_reward: float


class Model(Section):
    """`model`. Keys that the base model's own config has may be added with Hydra's `+`; see TrialConfig.model_keys."""

    mcore_gpt: AlwaysTrue = Field(description="the only implementation NeMo-Aligner trains")
    micro_batch_size: int = Field(ge=1, description="pairs a rank computes at once")
    global_batch_size: int = Field(ge=1, description="pairs a step, over all ranks")
    megatron_amp_O2: bool = Field(description="keep fp32 main copies of the trained weights")
    tensor_model_parallel_size: int = Field(ge=1)
    pipeline_model_parallel_size: int = Field(ge=1)
    sequence_parallel: bool = False
    encoder_seq_length: int = Field(ge=8, description="tokens, prompt and response together")
    seed: int = Field(ge=0)
    hidden_dropout: float | None = Field(None, ge=0, lt=1)
    attention_dropout: float | None = Field(None, ge=0, lt=1)
    activations_checkpoint_granularity: Literal["full", "selective"] | None = None
    activations_checkpoint_method: Literal["uniform", "block"] | None = None
    activations_checkpoint_num_layers: int | None = Field(None, ge=1)
    transformer_engine: bool | None = None
    dpo: Loss
    peft: Peft
    optim: Optimizer
    data: Data
    overwrite_base_config: FreeKeys = Field(default_factory=dict)
