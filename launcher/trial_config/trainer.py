"""`trainer` and `exp_manager`: how a trial trains, what it logs, which checkpoints it keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.trial_config.types import (
    AlwaysFalse,
    CountOrAll,
    FreeKeys,
    Interval,
    Number,
    Precision,
    Section,
    Text,
)

_KEEP_OUT = "NeMo-Aligner drives the loop itself"
_OWN_FOLDER = "the launcher gives every trial its own folder; use paths.runs"


class TrainingLoop(Section):
    """`trainer.dpo`. A float interval or limit is a share of an epoch, a whole number counts global batches."""

    max_epochs: int = Field(ge=1, description="passes over the training pairs")
    max_steps: CountOrAll = Field(description="cap on optimizer steps over all epochs; -1: none")
    val_check_interval: Interval = Field(description="how often to validate")
    save_interval: Interval = Field(description="how often to save; a multiple of val_check_interval")
    limit_train_batches: Number = Field(gt=0, description="global batches an epoch (whole) or their share")
    limit_val_batches: Number = Field(gt=0, description="global batches a validation (whole) or their share")
    gradient_clip_val: float | None = Field(ge=0, description="largest gradient norm; null: not clipped")


class Trainer(Section):
    """`trainer`."""

    num_nodes: int = Field(ge=1, description="nodes of one trial")
    devices: int = Field(ge=1, description="ranks a node")
    accelerator: Literal["auto", "gpu", "cpu"]
    precision: Precision = Field(description="auto: bf16 where it is fast")
    log_every_n_steps: int = Field(ge=1, description="steps between two TensorBoard points where NeMo asks for it")
    max_time: Text | None = Field(description="DD:HH:MM:SS after which the trial saves and leaves")
    max_epochs: int = Field(ge=1, description="follows trainer.dpo.max_epochs")
    max_steps: int = Field(ge=-1, description="follows trainer.dpo.max_steps")
    logger: AlwaysFalse = Field(description="exp_manager makes the loggers")
    enable_checkpointing: AlwaysFalse = Field(description="exp_manager makes the checkpoints")
    use_distributed_sampler: AlwaysFalse = Field(description=_KEEP_OUT)
    dpo: TrainingLoop


class KeptCheckpoints(Section):
    """`exp_manager.checkpoint_callback_params`."""

    monitor: Text = Field(description="what decides which checkpoint is best")
    save_top_k: CountOrAll = Field(description="checkpoints kept; -1: all")
    mode: Literal["min", "max"]
    always_save_nemo: bool
    save_nemo_on_train_end: bool
    filename: Text
    model_parallel_size: int | None = Field(ge=1, description="null: tensor times pipeline parallelism")


class ExpManager(Section):
    """`exp_manager`."""

    explicit_log_dir: None = Field(description=_OWN_FOLDER)
    exp_dir: None = Field(description=_OWN_FOLDER)
    name: Text = Field(description="first part of the checkpoints' names")
    max_time_per_run: Text | None = Field(description="follows trainer.max_time")
    create_tensorboard_logger: bool
    create_wandb_logger: bool = Field(description="Weights & Biases")
    wandb_logger_kwargs: FreeKeys = Field(default_factory=dict)
    create_mlflow_logger: bool = Field(description="MLflow")
    mlflow_logger_kwargs: FreeKeys = Field(default_factory=dict)
    resume_from_checkpoint: Text | None = Field(description="a checkpoint to go on from")
    resume_if_exists: bool
    resume_ignore_no_checkpoint: bool
    create_checkpoint_callback: bool
    checkpoint_callback_params: KeptCheckpoints
