"""What the Hydra launcher `preference_write` does: check the trials, write the sweep's folder, start nothing.

The plain scripts in sbatch/ call it inside their job, each element of an array by itself: the first one writes the
folder, and the others find it written.
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
    """Raises Refused with nothing written."""
    folder = prepare.folder_of(launcher)
    try:
        sweep, trials = prepare.checked_trials(launcher, job_overrides, lambda configs: _check(configs, os.environ))
    except Refused:
        there = _written_before(folder, job_overrides)
        if there is None:
            raise
        print(f"{folder} is written already", flush=True)
        return [unfinished(trial) for trial in there.trials]
    if _is_whole_array(len(trials), os.environ):
        name = os.environ.get("SLURM_JOB_NAME", "")
        sweep.record_job("slurm", os.environ["SLURM_ARRAY_JOB_ID"], [trial.number for trial in trials], name=name)
    print(f"{folder}: {len(trials)} trial{'s' if len(trials) > 1 else ''} written, nothing started", flush=True)
    return [unfinished(trial) for trial in trials]


def _check(trials: Sequence[PlannedTrial], env: Mapping[str, str]) -> list[Finding]:
    """Inside a job: its nodes and ranks are those that the trials are made for."""
    found: dict[Finding, None] = {}
    for key, variable, option in (
        ("trainer.num_nodes", "SLURM_JOB_NUM_NODES", "--nodes"),
        ("trainer.devices", "SLURM_NTASKS_PER_NODE", "--ntasks-per-node"),
    ):
        for trial in trials if env.get(variable) else ():
            asked = str(trial.config.at(key))
            if asked != env[variable]:
                why = f"but this job has {env[variable]} ({variable})"
                found[Finding(key, asked, why, f"drop it, and submit with {option}={asked}")] = None
    return list(found)


def _written_before(folder: Path, job_overrides: Sequence[Sequence[str]]) -> Sweep | None:
    """The sweep in `folder`, if it is one of the same trials."""
    if not (folder / "sweep.json").exists():
        return None
    sweep = Sweep.load(folder)
    asked = [tuple(plain(word) for word in overrides) for overrides in job_overrides]
    return sweep if [trial.overrides for trial in sweep.trials] == asked else None


def _is_whole_array(trials: int, env: Mapping[str, str]) -> bool:
    """Whether this process is in an array that has an element for each trial, numbered as they are."""
    numbers = (env.get(f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
    return "SLURM_ARRAY_JOB_ID" in env and list(numbers) == ["0", str(trials - 1), str(trials)]
