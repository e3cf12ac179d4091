"""How fast a trial will run: the speed in the config, or that of the last trial of the same shape."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import yaml

from launcher.check import cost
from launcher.findings import Refused
from launcher.nemo import base_model
from launcher.sweep import find
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.validate import load

_SWEEPS = 8  # only this many of the latest sweeps are searched, to keep a submission quick
#: Keys that must be equal for one trial's speed to predict another's.
_ALIKE = (
    "pretrained_checkpoint.restore_from_path",
    "trainer.num_nodes",
    "trainer.devices",
    "trainer.precision",
    "trainer.accelerator",
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.micro_batch_size",
    "model.peft.peft_scheme",
    "model.activations_checkpoint_granularity",
    "deterministic",
    "cluster.name",
    "cluster.partition",
    "cluster.constraint",
    "cluster.gpus_per_node",  # names the type of GPU where a partition has several
    "cluster.sbatch",  # so may any option of sbatch
)
#: The phase in which the reference policy is computed for the cache, and those that compute every pair of a trial.
_REFERENCE, _COMPUTING = "reference", ("training", "validating")


@dataclass(frozen=True)
class Speed:
    positions: float
    """Training positions a second and rank."""
    overhead: float
    """Other seconds of a trial: loading, saving, the evaluation at its end. 0 if unknown."""
    basis: str
    """The source of the figure."""


def known(config: TrialConfig) -> Speed | None:
    """The expected speed; None if the config sets none and no trial like this one has finished here."""
    entered = config.cluster.tokens_per_second
    if entered:
        return Speed(float(entered), 0.0, f"at cluster.tokens_per_second={entered:g}")
    for folder in islice(find.folders(), _SWEEPS):
        for place in sorted(folder.glob("*/result.json"))[:1]:
            speed = _of(place.parent, config)
            if speed is not None:
                return speed
    return None


def _of(trial: Path, config: TrialConfig) -> Speed | None:
    """The speed of a finished trial; None if it is of another kind, or its data no longer exist."""
    try:
        earlier = load(trial)
        result = json.loads((trial / "result.json").read_bytes())
        if any(earlier.at(key) != config.at(key) for key in _ALIKE):
            return None
        phases = result["phase_seconds"]
        base, cached = base_model.load(earlier.base_model), _REFERENCE in phases
        computed = cost.estimate(earlier, base, replace(cost.batching(earlier, base), reference_once=cached))
        spent = sum(phases.get(phase, 0.0) for phase in _COMPUTING)
    except (OSError, ValueError, KeyError, TypeError, Refused, yaml.YAMLError):  # written by another version
        return None
    if computed is None or not spent:
        return None
    # Another trial may have filled the cache, so how much of the reference this one computed is not known. Without a
    # cache it is computed with each batch, in the same phases as the policy.
    work = computed.policy_work if cached else computed.work
    overhead = sum(phases.values()) - spent - phases.get(_REFERENCE, 0.0)
    return Speed(work / (spent * computed.ranks), overhead, f"as measured in {os.path.relpath(trial)}")
