"""Submitting trials of a sweep again: for `retry` and the key of `watch`."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.slurm import client
from launcher.submit import to_slurm
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.trial_config.validate import load


def submit_again(sweep: Sweep, trials: Sequence[Trial]) -> list[str]:
    """Submit one new array of these trials, which belongs to the same sweep. Returns its id.

    There are several ids only if the trials ask Slurm for different things. Training goes on from the last checkpoint
    in each trial's folder. Raises SlurmError, and Refused if a trial's config is not valid.
    """
    configs = {trial.number: load(trial.folder) for trial in trials}
    requests = list(to_slurm.arrays(sweep, configs, client.cluster().max_array_size))
    to_slurm.submit(sweep, requests)
    return [job["id"] for job in Sweep.load(sweep.folder).submitted() if job["id"]][-len(requests) :]
