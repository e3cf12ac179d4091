"""Submitting trials of a sweep again, for `retry` and the key of `watch`; which copy of the code they run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from launcher.check import image, installed
from launcher.check.cluster_limits import Site, cluster_name
from launcher.findings import Refused
from launcher.submit import evaluation, to_slurm
from launcher.sweep import kept_code
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.trial_config.validate import load


def code_to_run(sweep: Sweep, trials: Sequence[Trial], current: bool) -> int | None:
    """The number of the copy of the launcher's code to run; None: for each trial the copy that it ran last.

    `current`: run the current code, and keep a copy of it in the sweep. So does a sweep without any copy. Prints a note
    on stderr if the trials' copy differs from the current code. Raises Refused if a copy was changed.
    """
    kept = {sweep.code_of(trial.number) for trial in trials}
    if current or None in kept:
        return sweep.keep_code()
    for number in sorted(number for number in kept if number is not None):
        sweep.check_code(number)
        if sweep.data["code"][number] != kept_code.sha256_today():
            place = kept_code.place(sweep.folder, number)
            print(f"note: runs the sweep's copy of the launcher, {place}; to renew it: --code current", file=sys.stderr)
    return None


def submit_again(sweep: Sweep, trials: Sequence[Trial], code: int | None = None) -> list[str]:
    """Submit one new array of these trials, which belongs to the same sweep. Returns its id.

    There are several ids only if the trials have different requests to Slurm. Training goes on from the last checkpoint
    in each trial's folder. `code` is that of `code_to_run`. Raises SlurmError, and Refused if a trial's config is not
    valid, or this Python or image, if trials run it, cannot train.
    """
    configs = {trial.number: load(trial.folder) for trial in trials}
    found = [
        finding for config in configs.values() for check in (installed, image) for finding in check.findings(config)
    ]
    if unfit := dict.fromkeys(found):
        raise Refused(unfit)
    requests = list(to_slurm.arrays(sweep, configs, Site(), code=code))
    to_slurm.submit(sweep, requests)
    return [job.id for job in Sweep.load(sweep.folder).submitted() if job.has_array_id][-len(requests) :]


def evaluate_again(sweep: Sweep, trials: Sequence[Trial]) -> list[tuple[int | None, list[int]]]:
    """Submit the evaluation of these trials again, as an array for each request to Slurm, or several where one would be
    too large. Returns (the array's id, its trials); None where sbatch did not take it, which is reported on stderr.

    Raises Refused, and submits nothing, if this cluster would refuse one of them or never start it.
    """
    alike: dict[str, list[int]] = {}
    for trial in trials:
        alike.setdefault(to_slurm.slurm_shape(load(trial.folder)), []).append(trial.number)
    site = Site()
    unfit = [
        finding
        for numbers in alike.values()
        for finding in evaluation.findings(site, load(sweep.folder / str(numbers[0])), len(numbers))
    ]
    if unfit:
        here = f"or evaluate on this machine: python -m launcher evaluate {shlex.quote(sweep.shown)}"
        remedy = f"write it into the trials' config.yaml, {here}"
        raise Refused([replace(finding, remedy=f"{finding.remedy}; {remedy}") for finding in dict.fromkeys(unfit)])
    most = site.cluster.max_array_size
    parts = [part[first : first + most] for part in alike.values() for first in range(0, len(part), most)]
    there = {part[0]: cluster_name(site, load(sweep.folder / str(part[0])).cluster) for part in parts}
    return [(evaluation.submit(sweep, part, cluster_name=there[part[0]]), part) for part in parts]
