"""Estimates the memory that a trial takes on each GPU, to within 25 %: enough to see that it cannot fit.

The source is Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models (arXiv 2205.05198),
table 2, changed for any MLP width, for FlashAttention (which recomputes the scores) and for LoRA on frozen weights.
What Megatron keeps without Transformer Engine, what recomputation leaves, and the vocabulary's logits were counted at
Llama-3-8B's shape (tests/integration/test_memory_terms.py). Nothing was measured on a GPU.
"""

from __future__ import annotations

import importlib.util
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
#: Bytes of the largest tensors of a vocabulary's entries that exist at one time, a position and entry: fp32 logits,
#: log-softmax and its exponential; NeMo-Aligner's own function has a one-hot tensor of int64 besides.
_PICKED_LOGITS, _STOCK_LOGITS = 12, 20
#: Bytes a token and hidden unit that a layer without Transformer Engine keeps for its norms and rotary embeddings.
_UNFUSED = 7
_SEQUENCES = 2  # a pair is a chosen and a rejected sequence, computed together


@dataclass(frozen=True)
class Memory:
    """GiB on the fullest GPU."""

    weights: float
    states: float
    """Trained parameters with their gradients, fp32 main copy and Adam's two moments."""
    activations: float
    logits: float
    scores: float = 0.0
    """Attention scores, kept only where Megatron's own attention computes them."""
    other: float = OVERHEAD_GIB

    @property
    def total(self) -> float:
        return self.weights + self.states + self.activations + self.logits + self.scores + self.other

    def __str__(self) -> str:
        scores = f" attention scores {self.scores:.1f} (no Transformer Engine)," if self.scores else ""
        return (
            f"{self.total:.0f} GiB per GPU, calculated: weights {self.weights:.1f}, trained states {self.states:.1f},"
            f" activations {self.activations:.1f},{scores} logits {self.logits:.1f}, other {self.other:.1f}"
        )


def attention_is_fused(trial: TrialConfig) -> bool:
    """Whether a trial's ranks have Transformer Engine, without which Megatron keeps attention scores.

    NVIDIA's images have it. Without a container the ranks use this Python, unless cluster.python names another; if it
    is not known, the answer is yes.
    """
    if trial.cluster.container.runtime or trial.cluster.python or importlib.util.find_spec("torch") is None:
        return True
    return importlib.util.find_spec("transformer_engine") is not None


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
    wide = 2.0 if trial.trainer.precision == "32" else 1.0  # the paper assumes 2-byte numbers; `auto` is bf16 on GPUs
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
    if trial.shares_prompts and isinstance(trial.compute.positions_per_micro_batch, int):
        trained = referred = max(trial.compute.positions_per_micro_batch, length * _SEQUENCES)
    fused = attention_is_fused(trial)
    kept = _over_layers(model, _layer_bytes(model, trial, trained, fused), _checkpoint_bytes(model, trained))
    # A layer keeps its probabilities; their gradient, one layer's at a time, and Megatron's buffer are as large. Rows
    # of pairs do not come to Megatron's attention, and on a GPU to none that keeps them.
    layer = 0.0 if fused or trial.shares_prompts else 2.0 * model["num_attention_heads"] / tensor * length * trained
    selective = model.get("activations_checkpoint_granularity") == "selective"
    scores = (layer if selective else _over_layers(model, layer, 0.0) * in_flight) + 2 * layer
    last = stage == pipeline - 1
    picked = trial.shares_prompts or (
        trial.compute.skip_prompt_logits and pipeline == 1 and not (trial.model.sequence_parallel or trial.packed)
    )
    bytes_per_logit = _PICKED_LOGITS if picked else _STOCK_LOGITS
    logits = bytes_per_logit * referred * rows / tensor if last else 0.0
    return Memory(
        weights=trial.weight_bytes * held / GIB,
        states=_state_bytes(model, trial, held) / GIB,
        activations=kept * in_flight * wide / GIB,
        logits=logits / GIB,
        scores=scores * wide / GIB,
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


def _layer_bytes(model: GptConfig, trial: TrialConfig, tokens: int, fused: bool) -> float:
    """Activation bytes that a layer keeps for one micro batch, without attention scores: table 2, and `_UNFUSED`."""
    tensor, hidden = model["tensor_model_parallel_size"], model["hidden_size"]
    mlp = 4 * model["ffn_hidden_size"] / hidden
    whole = _undivided(model)
    full = tokens * hidden * (10 * whole + (8 + mlp) / tensor) + tokens * _dropout_bytes(model, trial) / tensor
    # Unfused, the activation function's output is kept beside the product of both halves.
    more = tokens * hidden * (_UNFUSED * whole + 2 * model["ffn_hidden_size"] / hidden / tensor)
    return full if fused else full + more


def _checkpoint_bytes(model: GptConfig, tokens: int) -> float:
    """Bytes of a layer's input, all that is kept of a layer that is recomputed."""
    return tokens * model["hidden_size"] * 2 * _undivided(model)


def _undivided(model: GptConfig) -> float:
    """The part that a rank keeps of what only sequence parallelism divides."""
    return 1.0 / model["tensor_model_parallel_size"] if model.get("sequence_parallel") else 1.0


def _over_layers(model: GptConfig, full: float, checkpoint: float) -> float:
    """Bytes that a stage's layers keep, `full` or a `checkpoint` each, and those of the layers being recomputed."""
    layers = model["num_layers"] / model["pipeline_model_parallel_size"]
    if model.get("activations_checkpoint_granularity") != "full":
        return layers * full  # "selective" recomputes only the scores
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
    """Bytes of adapters with gradients, main copy and moments: 18 a parameter in bf16 (the rest in fp32), 16 where
    weights are fp32 and have no main copy.

    In full training the weights are counted in `weights`, so 16 and 12 remain, of which the 4 of the
    gradients stay on each rank and a distributed optimizer shards the rest.
    """
    single = trial.weight_bytes == 4
    if trial.trains_adapters:
        trained = lora.trainable_parameters(model, trial.model.peft.lora_tuning)
        return (16 if single else 18) * trained / trial.model_parallel_ranks
    shared = trial.data_parallel_ranks if "distributed" in trial.model.optim.name else 1
    return held * (4 + (8 if single else 12) / shared)


def warnings(base: BaseModel, trial: TrialConfig, gpu_gib: float | None, where: str) -> list[Finding]:
    """Warnings that a trial will probably not fit on its GPUs. `where` names the source of their size."""
    memory = per_gpu(base, trial) if gpu_gib is not None else None
    if memory is None or gpu_gib is None or memory.total <= gpu_gib:
        return []
    less = per_gpu(base, trial, _FULL)
    remedy = "install Transformer Engine, or " if memory.scores else ""
    remedy += "raise model.tensor_model_parallel_size or lower model.micro_batch_size or model.encoder_seq_length"
    if less is not None and less.total < 0.9 * memory.total:
        keys = " ".join(f"++model.{key}={value}" for key, value in _FULL.items())
        remedy = f"{keys} makes it {less.total:.0f} GiB; or {remedy}"
    return [Finding(where, f"{gpu_gib:g}", f"the trial needs about {memory} (+-25 %)", remedy)]
