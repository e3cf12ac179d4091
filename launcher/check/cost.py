"""What a trial costs: the positions it computes, how many are padding, GPU-hours, and the time limit it needs.

A position is one token (or padding token) of one sequence in one pass; a pair is two sequences. All figures follow
from the data's lengths and the config. Time also needs a throughput: one from the config, or that of an earlier trial
(`launcher.check.throughput`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from launcher import machine, units
from launcher.check import disk, kept_reference, pair_lengths
from launcher.check.pair_lengths import PairLengths
from launcher.check.steps import Plan, limited
from launcher.nemo import lora
from launcher.nemo.base_model import BaseModel
from launcher.trial_config.config import Split, TrialConfig
from launcher.trial_config.trainer import TrainingLoop

#: One pass over a position takes 2 FLOPs a weight. Training adapters needs two passes: forward, and backward for the
#: activations' gradients. Full training needs a third, for the weights' gradients (Kaplan et al. 2020, 2.1).
_LORA_PASSES, _FULL_PASSES = 2.0, 3.0
#: Dense bf16 FLOP/s of an H100 SXM (NVIDIA's data sheet), and the share of it that a well-tuned job reaches.
H100_FLOPS, USUAL_SHARE = 989e12, 0.4
#: Lengths are rounded up to a multiple of this; NeMo-Aligner itself uses 16 (DPOTrainer), for Transformer Engine.
_CPU_MULTIPLE, _STOCK_MULTIPLE = 1, 16
SPLITS: tuple[Split, Split] = ("train", "validation")


@dataclass(frozen=True)
class Batching:
    """How pairs are grouped into batches and padded."""

    cut: bool
    """True: a micro batch holds pairs of similar length and is padded to its longest. False: all are padded to the
    longest pair of the rank's whole share of the global batch.
    """
    reference_once: bool
    """Whether the reference policy is computed once for the sweep, not in every trial."""
    multiple: int = 1
    """Lengths are rounded up to a multiple of this."""
    rows: bool = False
    """Whether a pair is one row in which its prompt is computed once, without padding."""


@dataclass(frozen=True)
class Positions:
    """Positions that one trial computes, in each kind of pass."""

    training: float
    validation: float
    """Validation of the policy, forward only."""
    reference: float
    """The reference policy over the same batches, forward only."""
    padding: float
    """Share of the positions that are padding beyond the longer side of each pair."""


@dataclass(frozen=True)
class Cost:
    """The cost of one sweep."""

    trials: int
    positions: Positions
    """The positions of each trial."""
    reference_once: bool
    passes: float
    """The cost of one training position, in forward passes."""
    flops: float | None
    """FLOPs of the whole sweep; None if the base model's shape is unknown."""
    ranks: int
    counted: bool
    """Whether a tokenizer counted the tokens. False: they are estimated from characters."""

    @property
    def work(self) -> float:
        """Work of the longest trial, which computes the reference; in training positions."""
        return self._work(self.positions.reference)

    @property
    def policy_work(self) -> float:
        """Work of a trial without the reference; in training positions."""
        return self._work(0.0)

    @property
    def whole_work(self) -> float:
        """Work of all trials, in training positions."""
        references = 1 if self.reference_once else self.trials
        return self.policy_work * self.trials + self.positions.reference * references / self.passes

    def _work(self, reference: float) -> float:
        return self.positions.training + (self.positions.validation + reference) / self.passes


def batching(config: TrialConfig, base: BaseModel | None = None) -> Batching:
    """The batching that the trial's config asks for, and gets: the reference is not kept everywhere."""
    compute, on_gpu = config.compute, _on_gpu(config)
    ours = compute.cut_padding or compute.share_prompt
    usual = _CPU_MULTIPLE if ours and not on_gpu else _STOCK_MULTIPLE
    model = base.under(config) if base else config.model_keys
    gpu_in_bf16 = on_gpu and config.trainer.precision != "32"
    kept = not kept_reference.unsupported_reason(model, compute.positions_per_micro_batch, gpu_in_bf16)
    return Batching(
        compute.cut_padding, compute.cache_reference and kept, compute.length_multiple or usual, config.shares_prompts
    )


def _on_gpu(config: TrialConfig) -> bool:
    if config.trainer.accelerator != "auto":
        return config.trainer.accelerator == "gpu"
    return bool(machine.gpus()) if config.cluster.is_local else config.cluster.gpus > 0


def estimate(
    config: TrialConfig, base: BaseModel | None, layout: Batching | None = None, trials: int = 1
) -> Cost | None:
    """The cost of `trials` trials like this one. If `layout` is None, the config's own batching is used.

    Returns None if the data's lengths are unknown or the steps are refused.
    """
    model, layout = config.model, layout or batching(config, base)
    train, validation = (pair_lengths.load(config.data_files[split]) for split in SPLITS)
    if train is None or validation is None:
        return None
    plan = disk.trial_plan(config, train.rows)
    if plan is None:
        return None
    # pairs of a global batch on one data-parallel rank
    share = max(1, config.global_batch_size * config.model_parallel_ranks // config.ranks)
    cut = layout.cut and model.pipeline_model_parallel_size == 1  # pipeline stages agree on one shape
    trained, referred = (
        micro if cut else share for micro in (model.micro_batch_size, model.dpo.log_prob_forward_micro_batch_size)
    )
    pairs = plan.max_steps * config.global_batch_size
    checked = _validated(plan, config.trainer.dpo, config.global_batch_size, validation.rows)

    def computed(count: float, lengths: PairLengths, together: int) -> float:
        if layout.rows:
            return count * (lengths.row_share * lengths.mean + (layout.multiple - 1) / 2)
        return 2 * count * (lengths.padded(together, share) + (layout.multiple - 1) / 2)

    training, validating = computed(pairs, train, trained), computed(checked, validation, trained)
    seen_trained, seen_checked = float(pairs), checked
    if layout.reference_once:  # each pair once, however many trials and epochs
        seen_trained, seen_checked = min(pairs, train.rows), min(checked, validation.rows)
    reference = computed(seen_trained, train, referred) + computed(seen_checked, validation, referred)
    sides = [lengths.mean * (lengths.row_share if layout.rows else 2) for lengths in (train, validation)]
    needed = (pairs + seen_trained) * sides[0] + (checked + seen_checked) * sides[1]
    positions = Positions(training, validating, reference, max(0.0, 1 - needed / (training + validating + reference)))
    passes = _passes(config, base)
    cost = Cost(trials, positions, layout.reference_once, passes, None, config.ranks, train.counted)
    if base is None or not base.shaped or base.vocabulary is None:
        return cost
    weights = lora.parameters(base.config, base.vocabulary)
    if not base.config.get("share_embeddings_and_output_weights", True):
        weights -= base.vocabulary * base.config["hidden_size"]  # the embedding is looked up, not multiplied with
    return replace(cost, flops=2.0 * weights * passes * cost.whole_work)


def describe(cost: Cost, throughput: float | None, basis: str) -> str:
    """One line: tokens and padding, then hours. `throughput` is as in `seconds`; `basis` names its source."""
    about = "" if cost.counted else "about "
    count = units.short_count(cost.positions.training)
    tokens = f"{about}{count} tokens per trial, {cost.positions.padding:.0%} padding"
    parts = [tokens]
    if cost.trials > 1:
        parts.append("reference once for all" if cost.reference_once else "reference in each trial")
    if throughput is not None:
        hours = cost.whole_work / throughput / 3600
        whole = f"{hours:.3g} rank-hours" if hours >= 0.1 else f"{hours * 3600:.0f} rank-seconds"
        parts.append(f"{units.estimate(seconds(cost, throughput))} per trial, {whole} in all ({basis})")
    elif cost.flops is not None:
        gpus = cost.flops / (H100_FLOPS * USUAL_SHARE) / 3600
        if gpus >= 0.01:
            parts.append(f"{cost.flops:.2g} FLOPs: {gpus:.2g} H100-hours at {USUAL_SHARE:.0%} of its peak")
        else:
            parts.append(f"{cost.flops:.2g} FLOPs")
    return "; ".join(parts)


def seconds(cost: Cost, throughput: float) -> float:
    """Seconds that training, validation and reference of the longest trial take.

    `throughput` is in training positions a second and rank.
    """
    return cost.work / (throughput * cost.ranks)


def least_seconds(cost: Cost) -> float | None:
    """A lower bound for the longest trial, in seconds: as if each rank were an H100 at its peak."""
    if cost.flops is None:
        return None
    return cost.flops * cost.work / cost.whole_work / (H100_FLOPS * cost.ranks)


def _validated(plan: Plan, loop: TrainingLoop, batch: int, rows: int) -> float:
    """Held-out pairs that all validations of a trial compute together; an incomplete batch is dropped."""
    batches = limited(rows // batch, loop.limit_val_batches)
    times = math.ceil(plan.max_steps / plan.val_check_interval)
    return float(times * batches * batch)


def _passes(config: TrialConfig, base: BaseModel | None) -> float:
    model = base.under(config) if base else config.model_keys
    passes = _LORA_PASSES if config.trains_adapters else _FULL_PASSES
    return passes + (model.get("activations_checkpoint_granularity") == "full")  # the forward pass once more
