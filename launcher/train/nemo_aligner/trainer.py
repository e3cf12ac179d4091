"""NeMo-Aligner's DPOTrainer with a validation before the first step, an early stop, and progress messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from nemo_aligner.algorithms.dpo import DPOTrainer
from nemo_aligner.utils.trainer_utils import check_progress

from launcher.train.metrics_file import MetricsFile
from launcher.train.nemo_aligner import random_state, replicas
from launcher.train.nemo_aligner.checkpointing import CheckpointExtras, save_last
from launcher.train.timer import RunTimer, Stopped


class PreferenceTrainer(DPOTrainer):
    """Trains exactly as DPOTrainer does; `logger` must be a TrialLogger, `run_timer` a RunTimer.

    `state` is stored in checkpoints beside NeMo's own state.
    """

    limit_val_batches: int
    run_timer: RunTimer
    doing: str
    """What micro batches are computed for; "": the next step."""

    def __init__(self, *, state: CheckpointExtras, **arguments: object) -> None:
        super().__init__(**arguments)
        self.state = state
        self.saved_step = 0
        """Steps covered by a saved checkpoint."""
        self.doing = ""
        self._validated_batches = 0
        self.steps_of_this_start = 0
        make_forward = self.model.get_forward_output_and_loss_func

        def make_watched(*args: object, **kwargs: object) -> Callable[..., object]:
            """Report progress at each micro batch of policy and reference: on a CPU a step can take a minute."""
            forward = make_forward(*args, **kwargs)

            def watched(*args: object, **kwargs: object) -> Any:
                self.progress.beat(self.doing or f"micro batch of step {self.step + 1}")
                return forward(*args, **kwargs)

            return watched

        # Set on the instance: a subclass would be named in the .nemo that NeMo saves, and others could not load that.
        self.model.get_forward_output_and_loss_func = make_watched

    @property
    def progress(self) -> MetricsFile:
        """The file in which phases are reported."""
        file: MetricsFile = self.logger.file
        return file

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self.saved_step = self.step

    def validate_baseline(self, whole: bool) -> dict[str, float]:
        """Validate before the first step, and log it as step 0; returns its metrics.

        `whole` uses all validation batches, else only the first: the values of an untrained adapter are known
        beforehand (loss ln 2, log-ratios 0), so that one batch is enough to check them.
        """
        batches = self.limit_val_batches
        self.limit_val_batches = batches if whole else min(1, batches)
        try:
            _, metrics = self.run_validation()
        finally:
            self.limit_val_batches = batches
        self.logger.log_metrics(metrics, step=0, prefix="val/")
        return metrics

    def validate_owed(self) -> dict[str, float]:
        """Run the validation that was skipped at this step in order to stop in time."""
        _, metrics = self.run_validation()
        self.logger.log_metrics(metrics, step=self.step, prefix="val/")
        self.state.validation_owed = False
        return {f"val_{key}": value for key, value in metrics.items()}

    def save_owed(self, metrics: dict[str, float]) -> None:
        """Save what would have been saved after that validation: the best checkpoint; the last one exists."""
        if self._due()[1]:
            self.progress.phase("saving", f"checkpoint of step {self.step}")
            candidates = self._candidates(metrics)
            self.ckpt_callback.custom_save(monitor_candidates=candidates, save_top_only=True)

    def fit(self) -> None:
        """Raises Stopped if all ranks agreed to stop before the last step; by then they have saved."""
        self.progress.phase("training", f"from step {self.step}")
        try:
            done = -1
            # An epoch cut by limit_train_batches can end early when the data start again; NeMo counts it as whole.
            while done < self.step < self.max_steps:
                done = self.step
                super().fit()
        except Stopped:
            if self.step > self.saved_step:
                self._save_to_go_on()
            raise

    def augment_dataloader(self, dataloader: Any) -> Iterator[Any]:
        """As DPOTrainer's; training starts after the consumed samples, which a loader with workers has passed."""
        if dataloader is self.train_dataloader:
            dataloader.batch_sampler.consumed_samples = self.consumed_samples
        batches: Iterator[Any] = super().augment_dataloader(dataloader)
        return batches

    def train_single_step(self, global_batch: Any) -> Any:
        """As DPOTrainer's; in the first steps of a start the ranks compare their pairs and weights."""
        self.steps_of_this_start += 1
        compared = self.steps_of_this_start <= replicas.FIRST_STEPS
        if compared:
            replicas.compare_batch(global_batch, self.step + 1)
        answer = super().train_single_step(global_batch)
        if compared:
            replicas.compare_weights(self.model, self.step + 1)
        return answer

    def run_validation(self) -> tuple[float, dict[str, float]]:
        """Metrics as DPOTrainer's, and `pairs`, the number of pairs that they are means of (see limit_val_batches).

        The pairs of packed data are not counted: a row holds any number of them.
        """
        self.progress.phase("validating", f"{self.limit_val_batches} batches")
        self._validated_batches = 0
        with random_state.untouched():
            loss, metrics = super().run_validation()
        if self.model.cfg.data.data_impl != "packed_jsonl":
            metrics = {**metrics, "pairs": self._validated_batches * self.model.cfg.global_batch_size}
        self.progress.phase("training")
        return loss, metrics

    def validation_step(self, global_batch: Any) -> Any:
        """A validation can take longer than a warning allows; it is stopped if there are steps to save."""
        if self.step > self.saved_step:
            self.run_timer.is_finished()
        self._validated_batches += 1
        return super().validation_step(global_batch)

    def save(self, extra_candidates: Any = None, is_train_end: bool = False) -> None:
        replicas.compare_weights(self.model, self.step)
        self.progress.phase("saving", f"checkpoint of step {self.step}")
        with self.run_timer.saving():
            self.logger.save()
            super().save(extra_candidates, is_train_end=is_train_end)
        self.saved_step = self.step
        self.progress.phase("training")

    def _save_to_go_on(self) -> None:
        """Save the state after this step, without a validation, which takes time."""
        replicas.compare_weights(self.model, self.step)
        self.state.validation_owed = self._due()[0]
        self.progress.phase("saving", f"checkpoint of step {self.step}")
        with self.run_timer.saving():
            self.logger.save()
            torch.distributed.barrier()
            save_last(self.ckpt_callback, self.model.trainer, self._candidates(self.state.latest))
        self.saved_step = self.step

    def _due(self) -> tuple[bool, bool]:
        """Whether a validation, and a save, belong to this step."""
        val, save, limit = self.val_check_interval, self.cfg.save_interval, self.limit_val_batches
        validation, saving, _ = check_progress(self.step, self.max_steps, val, save, limit)
        return bool(validation), bool(saving)

    def _candidates(self, metrics: dict[str, float]) -> dict[str, torch.Tensor]:
        """The values in a checkpoint's name, as DPOTrainer.save provides them."""
        counters = {key: torch.tensor(value, dtype=torch.int32) for key, value in self.state_dict().items()}
        return {**counters, **{key: torch.as_tensor(value) for key, value in metrics.items()}}
