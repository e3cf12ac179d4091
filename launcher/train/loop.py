"""NeMo-Aligner's DPOTrainer, with a validation before the first step and a word on what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_aligner.algorithms.dpo import DPOTrainer

from launcher.train.metrics import MetricsFile


class PreferenceTrainer(DPOTrainer):
    """Trains exactly as DPOTrainer does; `logger` has to be a TrialLogger."""

    limit_val_batches: int

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        make_forward = self.model.get_forward_output_and_loss_func

        def make_watched(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            """On a CPU a step can take a minute; each micro batch of policy and reference is a sign of life."""
            forward = make_forward(*args, **kwargs)

            def watched(*args: Any, **kwargs: Any) -> Any:
                self.progress.beat(f"micro batch of step {self.step + 1}")
                return forward(*args, **kwargs)

            return watched

        # On the instance: a class of our own would be named in the .nemo that NeMo saves, which others have to load.
        self.model.get_forward_output_and_loss_func = make_watched

    @property
    def progress(self) -> MetricsFile:
        """Where phases are reported."""
        file: MetricsFile = self.logger.file
        return file

    def validate_baseline(self, whole: bool) -> float:
        """Validate before the first step, and log it as step 0; returns the preference loss.

        `whole` takes all validation batches, else the first alone: an untrained adapter's values are all known
        beforehand (loss ln 2, log-ratios 0), so that one batch is enough to see whether they come out.
        """
        batches = self.limit_val_batches
        self.limit_val_batches = batches if whole else min(1, batches)
        try:
            _, metrics = self.run_validation()
        finally:
            self.limit_val_batches = batches
        self.logger.log_metrics(metrics, step=0, prefix="val/")
        return float(metrics["preference_loss"])

    def fit(self) -> None:
        self.progress.phase("training", f"from step {self.step}")
        super().fit()

    def run_validation(self) -> tuple[float, dict[str, float]]:
        self.progress.phase("validating", f"{self.limit_val_batches} batches")
        answer = super().run_validation()
        self.progress.phase("training")
        return answer

    def save(self, extra_candidates: Any = None, is_train_end: bool = False) -> None:
        self.progress.phase("saving", f"checkpoint of step {self.step}")
        super().save(extra_candidates, is_train_end=is_train_end)
        self.progress.phase("training")
