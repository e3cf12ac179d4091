"""The Hydra launcher `preference_write`: it checks the trials and writes the sweep's folder, but starts nothing.

The plain scripts in sbatch/ call it inside their job, in each element of an array: the first element writes the folder,
and the others use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn

from launcher.compose.command_line import plain
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding, Refused
from launcher.submit import prepare
from launcher.submit.to_slurm import unfinished
from launcher.sweep.folder import Sweep


def launch(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
    """If it raises Refused, nothing was written."""
    folder = prepare.folder_of(launcher)
    try:
        sweep, trials = prepare.checked_trials(launcher, job_overrides, lambda configs: _check(configs, os.environ))
    except Refused:
        existing = _written_before(folder, job_overrides)
        if existing is None:
            raise
        print(f"{folder} has been written already", flush=True)
        return [unfinished(trial) for trial in existing.trials]
    if _is_whole_array(len(trials), os.environ):
        name, cluster = (os.environ.get(f"SLURM_{what}", "") for what in ("JOB_NAME", "CLUSTER_NAME"))
        numbers = [trial.number for trial in trials]
        sweep.record_job("slurm", os.environ["SLURM_ARRAY_JOB_ID"], numbers, name=name, cluster=cluster)
    print(f"{folder}: {len(trials)} trial{'s' if len(trials) > 1 else ''} written, nothing started", flush=True)
    return [unfinished(trial) for trial in trials]


def _check(trials: Sequence[PlannedTrial], env: Mapping[str, str]) -> list[Finding]:
    """Inside a job: whether its nodes and ranks are those that the trials need."""
    problems: dict[Finding, None] = {}
    for key, variable, option in (
        ("trainer.num_nodes", "SLURM_JOB_NUM_NODES", "--nodes"),
        ("trainer.devices", "SLURM_NTASKS_PER_NODE", "--ntasks-per-node"),
    ):
        for trial in trials if env.get(variable) else ():
            expected = str(trial.config.at(key))
            if expected != env[variable]:
                why = f"this job has {env[variable]} ({variable})"
                problems[Finding(key, expected, why, f"drop it, and submit with {option}={expected}")] = None
    return list(problems)


def _written_before(folder: Path, job_overrides: Sequence[Sequence[str]]) -> Sweep | None:
    """The sweep in `folder`, if it has the same trials."""
    if not (folder / "sweep.json").exists():
        return None
    sweep = Sweep.load(folder)
    overrides_of_trials = [tuple(plain(word) for word in overrides) for overrides in job_overrides]
    return sweep if [trial.overrides for trial in sweep.trials] == overrides_of_trials else None


def _is_whole_array(trials: int, env: Mapping[str, str]) -> bool:
    """Whether this process is in an array with one element for each trial, with the same numbers."""
    numbers = (env.get(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
    return "SLURM_ARRAY_JOB_ID" in env and list(numbers) == ["0", str(trials - 1), str(trials)]
