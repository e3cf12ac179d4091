"""Estimates the memory that a trial takes on each GPU, to within 25 %: enough to see that it cannot fit.

The source is Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models (arXiv 2205.05198),
table 2, changed for any MLP width, for FlashAttention (which recomputes the scores) and for LoRA on frozen weights. It
was not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from launcher.findings import Finding
from launcher.nemo import lora
from launcher.nemo.base_model import BaseModel
from launcher.nemo.gpt_config import GptConfig
from launcher.trial_config.config import TrialConfig

GIB = float(1 << 30)
#: CUDA's context, NCCL's buffers and the allocator's gaps.
OVERHEAD_GIB = 2.0
_FULL = {
    "activations_checkpoint_granularity": "full",
    "activations_checkpoint_method": "uniform",
    "activations_checkpoint_num_layers": 1,
}
_SEQUENCES = 2  # a pair is a chosen and a rejected sequence, computed together


@dataclass(frozen=True)
class Memory:
    """GiB on the fullest GPU."""

    weights: float
    states: float
    """Trained parameters with their gradients, fp32 main copy and Adam's two moments."""
    activations: float
    logits: float
    other: float = OVERHEAD_GIB

    @property
    def total(self) -> float:
        return self.weights + self.states + self.activations + self.logits + self.other

    def __str__(self) -> str:
        return (
            f"{self.total:.0f} GiB per GPU, calculated: weights {self.weights:.1f}, trained states {self.states:.1f},"
            f" activations {self.activations:.1f}, logits {self.logits:.1f}, other {self.other:.1f}"
        )


def per_gpu(base: BaseModel, trial: TrialConfig, changes: Mapping[str, object] | None = None) -> Memory | None:
    """Memory on the fullest GPU of a trial. `changes` replace keys of `model`. None if the .nemo's shape is unknown."""
    if not base.shaped or base.vocabulary is None:
        return None
    model = cast("GptConfig", {**base.under(trial), **(changes or {})})
    pipeline = trial.model.pipeline_model_parallel_size
    stages = [_stage(base.vocabulary, model, trial, stage) for stage in {0, pipeline - 1}]
    return max(stages, key=lambda memory: memory.total)


def _stage(vocabulary: int, model: GptConfig, trial: TrialConfig, stage: int) -> Memory:
    """Memory of one pipeline stage. `model` is the base model's config, overridden by the trial's keys."""
    tensor, pipeline = trial.model.tensor_model_parallel_size, trial.model.pipeline_model_parallel_size
    wide = _bytes(trial) / 2  # the paper assumes 2-byte numbers
    layers = model["num_layers"] / pipeline
    rows = _padded_rows(vocabulary, model, tensor)
    tables = _tables(model, stage, pipeline)
    matrices = lora.parameters(model, 0) / model["num_layers"] * layers
    held = (matrices + tables * rows * model["hidden_size"]) / tensor  # parameters on this GPU
    length, micro = trial.longest_pair, trial.model.micro_batch_size
    # In the 1F1B schedule the first stage has started one micro batch per stage before it finishes its first one.
    in_flight = min(pipeline - stage, max(1, trial.global_batch_size // (micro * trial.data_parallel_ranks)))
    trained = length * _SEQUENCES * micro  # positions of a micro batch; a pair may have nothing to share
    referred = length * _SEQUENCES * max(micro, trial.model.dpo.log_prob_forward_micro_batch_size)
    if trial.compute.share_prompt and isinstance(trial.compute.positions_per_micro_batch, int):
        trained = referred = max(trial.compute.positions_per_micro_batch, length * _SEQUENCES)
    kept = _layer_bytes(model, trial, trained) * in_flight * wide
    last = stage == pipeline - 1
    # bf16 logits (2), their fp32 copy and its softmax (4 + 4): 10 bytes for each token and vocabulary entry
    logits = (8 + 2 * wide) * referred * rows / tensor if last else 0.0
    return Memory(
        weights=2 * wide * held / GIB,
        states=_state_bytes(model, trial, held) / GIB,
        activations=kept / GIB,
        logits=logits / GIB,
    )


def _tables(model: GptConfig, stage: int, pipeline: int) -> int:
    """Embedding-sized tables that a stage holds: the input embedding in the first, the output layer in the last."""
    tied = bool(model.get("share_embeddings_and_output_weights", True))
    if pipeline == 1:
        return 1 if tied else 2
    return int(stage == 0) + int(stage == pipeline - 1)  # tied tables are copied to the last stage


def _padded_rows(vocabulary: int, model: GptConfig, tensor: int) -> int:
    unit = int(model.get("make_vocab_size_divisible_by") or 128) * tensor
    return -(-vocabulary // unit) * unit


def _layer_bytes(model: GptConfig, trial: TrialConfig, tokens: int) -> float:
    """Activation bytes that one stage keeps for one micro batch: table 2, less what the backward pass recomputes."""
    tensor, hidden = model["tensor_model_parallel_size"], model["hidden_size"]
    layers = model["num_layers"] / model["pipeline_model_parallel_size"]
    mlp = 4 * model["ffn_hidden_size"] / hidden
    whole = 1.0 / tensor if model.get("sequence_parallel") else 1.0  # where tensor parallelism does not split
    full = tokens * hidden * (10 * whole + (8 + mlp) / tensor) + tokens * _dropout_bytes(model, trial) / tensor
    checkpoint = tokens * hidden * 2 * whole
    if model.get("activations_checkpoint_granularity") != "full":
        return layers * full  # "selective" recomputes the scores, which FlashAttention never keeps
    group = model.get("activations_checkpoint_num_layers") or 1
    if model.get("activations_checkpoint_method") == "block":
        again = min(group, layers)
        return again * checkpoint + (layers - again) * full + full
    return layers / group * checkpoint + min(group, layers) * full


def _dropout_bytes(model: GptConfig, trial: TrialConfig) -> float:
    """Bytes a token and layer of LoRA's dropout: a copy (2) and a mask (1) of each adapted matrix's input."""
    tuning = trial.model.peft.lora_tuning
    if not trial.trains_adapters or not tuning.adapter_dropout:
        return 0.0
    matrices = lora.shapes(model)
    return 3.0 * sum(matrices[name][0] for name in tuning.target_modules)


def _state_bytes(model: GptConfig, trial: TrialConfig, held: float) -> float:
    """Bytes of adapters with gradients, main copy and moments: 18 a parameter in bf16 (the rest in fp32), 16 in fp32.

    In full training the weights are counted in `weights`, so 16 and 12 remain, of which the 4 of the
    gradients stay on each rank and a distributed optimizer shards the rest.
    """
    single = _bytes(trial) == 4
    if trial.trains_adapters:
        trained = lora.trainable_parameters(model, trial.model.peft.lora_tuning)
        return (16 if single else 18) * trained / trial.model_parallel_ranks
    shared = trial.data_parallel_ranks if "distributed" in trial.model.optim.name else 1
    return held * (4 + (8 if single else 12) / shared)


def _bytes(trial: TrialConfig) -> int:
    """Bytes of one weight on a GPU; `auto` is bf16 there."""
    return 4 if trial.trainer.precision == "32" else 2


def warnings(base: BaseModel, trial: TrialConfig, gpu_gib: float | None, where: str) -> list[Finding]:
    """Warnings that a trial will probably not fit on its GPUs. `where` names the source of their size."""
    memory = per_gpu(base, trial) if gpu_gib is not None else None
    if memory is None or gpu_gib is None or memory.total <= gpu_gib:
        return []
    less = per_gpu(base, trial, _FULL)
    remedy = "raise model.tensor_model_parallel_size or lower model.micro_batch_size or model.encoder_seq_length"
    if less is not None and less.total < 0.9 * memory.total:
        keys = " ".join(f"++model.{key}={value}" for key, value in _FULL.items())
        remedy = f"{keys} makes it {less.total:.0f} GiB; or {remedy}"
    return [Finding(where, f"{gpu_gib:g}", f"the trial needs about {memory} (+-25 %)", remedy)]
