"""The interface between a trial and the engine that trains it.

An engine is a module with the functions of `Engine`. launcher/train/run.py knows nothing else about it: signals,
checkpoint manifests, metrics.jsonl and result.json are the same for every engine. To add one, write such a module and
name it in launcher/engines.py, or name its dotted path in the config: engine=mypackage.engine.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from omegaconf import DictConfig

from launcher.check.steps import Plan
from launcher.engines import ENGINES, module_of
from launcher.findings import Finding, Refused
from launcher.train.metrics_file import MetricsFile
from launcher.train.ranks import Device, Ranks

#: The metrics that tables, plots and verdicts read, after the prefix "train/" or "val/". An engine logs at least these
#: through MetricsFile: the mean loss, the fraction of pairs whose chosen response has the higher implicit reward, and
#: the mean log-ratios to the reference policy in nats, not multiplied by beta. The names are NeMo-Aligner's.
METRICS = ("loss", "acc", "rewards_chosen_mean", "rewards_rejected_mean")


@dataclass
class JobConfig:
    """A trial's config, completed with the values that are known only inside the job."""

    config: DictConfig
    steps: Plan
    device: Device
    threads: int = 0
    """Threads of each rank on a CPU; 0 on a GPU."""
    notes: dict[str, str] = field(default_factory=dict)
    """More lines for the trial's banner: title -> text."""


class Session(Protocol):
    """A trial that is ready to train, in one rank."""

    @property
    def step(self) -> int:
        """Steps done, including those of earlier starts."""
        ...

    def run(self) -> str:
        """Train to the last step and save. Returns the reason if it stopped before the last step, else "".

        A warning (launcher.train.signals) or the time limit stops all ranks after the same step, with a checkpoint.
        """
        ...

    def evaluate(self, progress: MetricsFile) -> dict[str, object]:
        """Measure the trained policy; returns the value of result.json's key `evaluation`. Every rank must call it."""
        ...

    def banner(self) -> dict[str, str]:
        """Lines that describe the trial: title -> text."""
        ...

    def facts(self) -> dict[str, object]:
        """What result.json records besides metrics and timing: `beta`, `pairs`, `checkpoint`, ..."""
        ...


class Engine(Protocol):
    """The functions that an engine's module must have."""

    def configure(self, config: DictConfig, trial_dir: Path, ranks: Ranks, progress: MetricsFile) -> JobConfig:
        """Choose device and precision and turn intervals into steps. Raises Refused. Runs before any heavy import."""
        ...

    def build(self, job: JobConfig, trial_dir: Path, progress: MetricsFile) -> Session:
        """Load the model, the pairs and, if there is one, the last complete checkpoint."""
        ...

    def shut_down(self) -> None:
        """Let all ranks leave together."""
        ...


def load(config: DictConfig) -> Engine:
    """Import the engine that a trial's config names. Raises Refused if it is unknown or cannot be imported."""
    name = str(config.get("engine", "nemo_aligner"))
    path = module_of(name)
    if path is None:
        remedy = f"there are: {', '.join(ENGINES)}; or name a module, package.name"
        raise Refused([Finding("engine", name, "no such engine", remedy)])
    try:
        return cast(Engine, importlib.import_module(path))
    except ModuleNotFoundError as error:
        raise Refused([Finding("engine", name, f"cannot be imported ({error})", "put it on PYTHONPATH")]) from error
