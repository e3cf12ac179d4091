"""The engine that uses NeMo-Aligner: it sets up stand-ins and settings, then imports NeMo, then builds the session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from launcher.nemo import versions
from launcher.sweep import metrics
from launcher.train import result
from launcher.train.device import choose_device
from launcher.train.engine import JobConfig
from launcher.train.metrics_file import MetricsFile
from launcher.train.nemo_aligner import log_filter, loopback_store, parallelism, settings, standins
from launcher.train.ranks import Ranks, share_cores

if TYPE_CHECKING:
    from launcher.train.nemo_aligner.session import AlignerSession


def configure(config: DictConfig, trial_dir: Path, ranks: Ranks, progress: MetricsFile) -> JobConfig:
    """Put the stand-ins in place, then choose device, precision and steps. Raises Refused."""
    versions.check()
    progress.phase(metrics.STARTING, "importing torch")
    log_filter.quiet()
    gaps = standins.install()
    device = choose_device(config.trainer.accelerator, config.trainer.precision, ranks)
    threads = share_cores(ranks) if device.accelerator == "cpu" else 0
    loopback_store.host(ranks)
    parallelism.check(config, gaps)
    steps = settings.configure(config, trial_dir, ranks, device)
    notes = {"stand-ins": f"for {', '.join(gaps)}, missing here (launcher/train/nemo_aligner/standins/)"}
    return JobConfig(config, steps, device, threads, notes if gaps else {})


def build(job: JobConfig, trial_dir: Path, progress: MetricsFile) -> NemoSession:
    """Import NeMo, load model and pairs, resume from the last complete checkpoint."""
    progress.phase(metrics.STARTING, "importing NeMo")
    with standins.importing():
        from launcher.train.nemo_aligner import session  # only after the stand-ins

    log_filter.files_only()
    config = job.config
    progress.phase("loading model", Path(config.pretrained_checkpoint.restore_from_path).name)
    return NemoSession(job, session.build(config, job.steps, progress))


def shut_down() -> None:
    from launcher.train.nemo_aligner import session

    session.shut_down()


@dataclass
class NemoSession:
    """A NeMo-Aligner session as launcher.train.run sees it."""

    job: JobConfig
    session: AlignerSession

    @property
    def step(self) -> int:
        return int(self.session.trainer.step)

    def run(self) -> str:
        return self.session.run()

    def evaluate(self, progress: MetricsFile) -> dict[str, object]:
        from launcher.train.nemo_aligner.evaluate import evaluate

        return evaluate(self.session.model, self.job.config, self.session.held_out, progress)

    def banner(self) -> dict[str, str]:
        config, session = self.job.config, self.session
        model, dpo, steps = config.model, config.model.dpo, self.job.steps
        epochs = steps.max_steps / steps.steps_per_epoch
        begin = f", from step {self.step}" if self.step else ""
        share = session.trainable / session.parameters
        return {
            "beta": f"{dpo.ref_policy_kl_penalty:g} ({dpo.preference_loss} loss)",
            "model": f"{config.pretrained_checkpoint.restore_from_path}, {session.parameters:,} parameters",
            "trainable": f"{session.trainable:,}, {share:.2%} of them ({_trained(model.peft)})",
            "pairs": f"{session.pairs['train']} train, {session.pairs['validation']} validation",
            "steps": f"{steps.max_steps} of {model.global_batch_size} pairs ({epochs:.2g} epochs){begin}",
            "": f"validation every {steps.val_check_interval}, checkpoint every {steps.save_interval}",
        }

    def facts(self) -> dict[str, object]:
        session = self.session
        return {
            "beta": float(self.job.config.model.dpo.ref_policy_kl_penalty),
            "pairs": session.pairs,
            "trainable_parameters": session.trainable,
            "parameters": session.parameters,
            "checkpoint": session.last_checkpoint(),
            "nemo": session.nemo_file(),
            "versions": result.versions(),
        }


def _trained(peft: DictConfig) -> str:
    """Which weights are trained, in words."""
    if peft.peft_scheme != "lora":
        return "all weights"
    tuning = peft.lora_tuning
    alpha = tuning.get("alpha", tuning.adapter_dim)
    return f"LoRA rank {tuning.adapter_dim}, alpha {alpha:g} on {', '.join(tuning.target_modules)}"
