"""The whole config of a trial, and what the rest of the launcher asks it without knowing NeMo's names of keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from launcher.dotted_keys import at
from launcher.engines import ENGINES
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.evaluation import Evaluation
from launcher.trial_config.model import Model, PretrainedCheckpoint
from launcher.trial_config.trainer import ExpManager, Trainer
from launcher.trial_config.types import Engine, Hypotheses, Positions, Precision, Section, Text

Split = Literal["train", "validation", "test"]


class Experiment(Section):
    """`experiment`."""

    name: Text = Field(description="names the sweep's folder and job")
    hypotheses: Hypotheses


class Paths(Section):
    """`paths`."""

    models: Text = Field(description="folder of .nemo files")
    data: Text = Field(description="folder of data sets")
    runs: Text = Field(description="folder of sweeps")
    cache: Text = Field(description="folder of the reference policy's log-probabilities")


class Compute(Section):
    """`compute`: what a step need not compute."""

    share_prompt: bool = Field(True, description="compute a pair's prompt once, not for chosen and rejected each")
    positions_per_micro_batch: Positions | None = Field(
        "auto", description="pairs share a row of so many positions at most; null: model.micro_batch_size pairs do"
    )
    cut_padding: bool = Field(description="cut each micro batch to its own longest pair")
    length_multiple: int | None = Field(ge=1, description="tokens that a micro batch's length is rounded up to")
    cache_reference: bool = Field(description="keep the reference policy's log-probabilities in paths.cache")
    skip_prompt_logits: bool = Field(description="compute logits only at the response's positions")


class TrialConfig(Section):
    """One trial's config, resolved. Made by validate.py; the plain data it was made of are kept beside it."""

    trainer: Trainer
    exp_manager: ExpManager
    pretrained_checkpoint: PretrainedCheckpoint
    precision: Precision = Field(description="follows trainer.precision")
    model: Model
    evaluation: Evaluation
    compute: Compute
    experiment: Experiment
    paths: Paths
    engine: Engine = Field(description="what trains the trial")
    deterministic: bool = Field(False, description="on GPUs: the same numbers bit for bit each time, more slowly")
    wait: bool = Field(description="on Slurm: stay and watch until all trials have ended")
    cluster: Cluster

    _plain: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict[str, object]:
        """The config as plain data, with the keys that the user added under `model`: what config.yaml holds."""
        return self._plain

    def at(self, key: str) -> Any:
        """The value of a dotted key; None where there is none."""
        return at(self._plain, key)

    @property
    def model_keys(self) -> dict[str, object]:
        """The keys under `model` with those the user added, as NeMo lays them over the base model's own config."""
        keys: dict[str, Any] = self._plain["model"]
        return keys

    # -- shape ---------------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> int:
        return self.trainer.num_nodes

    @property
    def ranks_per_node(self) -> int:
        return self.trainer.devices

    @property
    def ranks(self) -> int:
        """Processes of one trial, over all its nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def model_parallel_ranks(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.model.tensor_model_parallel_size * self.model.pipeline_model_parallel_size

    @property
    def data_parallel_ranks(self) -> int:
        """Copies of the model."""
        return max(1, self.ranks // self.model_parallel_ranks)

    # -- training ------------------------------------------------------------------------------------------------------

    @property
    def beta(self) -> float:
        return self.model.dpo.ref_policy_kl_penalty

    @property
    def seed(self) -> int:
        return self.model.seed

    @property
    def global_batch_size(self) -> int:
        """Pairs a step, over all ranks."""
        return self.model.global_batch_size

    @property
    def longest_pair(self) -> int:
        """Tokens, prompt and response together."""
        return self.model.encoder_seq_length

    @property
    def trains_adapters(self) -> bool:
        return self.model.peft.peft_scheme == "lora"

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight in memory and in checkpoints; `auto` is bf16 on GPUs.

        Without megatron_amp_O2 NeMo keeps fp32 weights also in bf16 (megatron_base_model.py, params_dtype): autocast
        makes only the activations bf16.
        """
        return 4 if self.trainer.precision == "32" or not self.model.megatron_amp_O2 else 2

    @property
    def evaluated_after_training(self) -> bool:
        """Whether the policy answers prompts by itself; what another engine trains may not be an adapter of NeMo's."""
        return self.evaluation.after_training and self.engine in ENGINES

    @property
    def packed(self) -> bool:
        """Whether the data are packs of pairs (.npy) and not pairs (.jsonl)."""
        return self.model.data.data_impl == "packed_jsonl"

    @property
    def shares_prompts(self) -> bool:
        """Whether pairs are computed as rows, prompts once: compute.share_prompt, where the parallelism lets it."""
        whole = self.model_keys.get("context_parallel_size") in (None, 1) and not self.model.sequence_parallel
        return self.compute.share_prompt and whole and self.model.pipeline_model_parallel_size == 1 and not self.packed

    # -- files ---------------------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Path:
        """The .nemo file that training starts from."""
        return Path(self.pretrained_checkpoint.restore_from_path)

    @property
    def data_files(self) -> dict[Split, Path]:
        """The file of each split: pairs (.jsonl), or packs of them (.npy)."""
        prefix = self.model.data.data_prefix
        return {"train": Path(prefix.train[0]), "validation": Path(prefix.validation[0]), "test": Path(prefix.test[0])}
