"""What every sweep does before anything runs: compose all trials, check them all, write the folder."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from launcher.check import preflight
from launcher.compose import hydra_state, trials
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding, LauncherError, Refused
from launcher.sweep.folder import FolderTaken, Sweep
from launcher.sweep.records import ExperimentRecord
from launcher.sweep.trial import Trial

Check = Callable[[Sequence[PlannedTrial]], list[Finding]]
Warn = Callable[[Sequence[PlannedTrial], Path], list[Finding]]


def checked_trials(
    launcher: HydraLauncher,
    job_overrides: Sequence[Sequence[str]],
    check: Check | None = None,
    warn: Warn | None = None,
) -> tuple[Sweep, list[Trial]]:
    """The trials of one batch of overrides, checked and written; `launcher` is a Hydra launcher plugin.

    The first batch creates the sweep's folder, later ones (of a sweeper that learns from results) add to it. `check`
    makes the checks of this kind of launcher, `warn` (which also gets the sweep's folder) those that are no reason to
    refuse. Raises Refused, with nothing written, if a trial would fail.
    """
    configs = composed(launcher, job_overrides)
    refuse(launcher, configs, check, warn)
    return written(launcher, configs)


def composed(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> list[PlannedTrial]:
    """The trials' configs, each of which is valid by itself. Raises Refused."""
    return trials.trial_configs(
        launcher.hydra_context.config_loader, launcher.config, job_overrides, hydra_state.forced
    )


def folder_of(launcher: HydraLauncher) -> Path:
    """The folder in which the sweep is written."""
    return Path(launcher.config.hydra.sweep.dir).expanduser().absolute()


def refuse(
    launcher: HydraLauncher,
    configs: Sequence[PlannedTrial],
    check: Check | None = None,
    warn: Warn | None = None,
    expected: Collection[Path] = (),
) -> None:
    """Raises Refused with all findings; `expected` are files that will be made before a trial starts."""
    if launcher.sweep is None and not hydra_state.names_folder:
        _choose_free_folder(launcher)
    folder = folder_of(launcher)
    findings = preflight.findings(configs, None if launcher.sweep else folder, expected)
    findings += check(configs) if check else []
    if findings:
        raise Refused(findings)
    for warning in [*preflight.warnings(configs, folder), *(warn(configs, folder) if warn else [])]:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def experiment_of(trial: PlannedTrial) -> ExperimentRecord:
    experiment = trial.config.experiment
    return {"name": experiment.name, "hypotheses": experiment.hypotheses}


def written(launcher: HydraLauncher, configs: Sequence[PlannedTrial]) -> tuple[Sweep, list[Trial]]:
    """Create the sweep's folder, or add to it; returns it and the trials of these configs. Raises Refused."""
    pairs = [(trial.overrides, trial.config.plain) for trial in configs]
    if launcher.sweep is not None:
        return launcher.sweep, launcher.sweep.add_trials(pairs)
    experiment = experiment_of(configs[0])
    while launcher.sweep is None:
        try:
            launcher.sweep = Sweep.create(
                folder_of(launcher), command=hydra_state.command, experiment=experiment, trials=pairs
            )
        except FolderTaken:
            if hydra_state.names_folder:
                raise
            _choose_free_folder(launcher)
    hydra_state.folder = launcher.sweep.folder
    return launcher.sweep, launcher.sweep.trials


def _choose_free_folder(launcher: HydraLauncher) -> None:
    """Add a number to the folder's name, which is the time in seconds, if another sweep has that name already."""
    from omegaconf import read_write

    folder = folder_of(launcher)
    stem = re.sub(r"(?<=\d\d-\d\d-\d\d)_\d+$", "", folder.name)
    names = itertools.chain([folder], (folder.with_name(f"{stem}_{number}") for number in itertools.count(2)))
    with read_write(launcher.config.hydra):
        launcher.config.hydra.sweep.dir = str(next(name for name in names if not os.path.exists(name)))


class NoResult(LauncherError):
    """Raised if a sweeper asks for the value of a trial that has none. str() is one line."""


def job_return(trial: Trial, error: str = "") -> JobReturn:
    """The value of a trial for Hydra and for sweepers that need values: its validation loss, or why there is none."""
    answer = JobReturn(overrides=list(trial.overrides))
    result = trial.result()
    if result is not None:
        answer.status = JobStatus.COMPLETED
        answer.return_value = result["final"]["val/loss"]
    else:
        answer.status = JobStatus.FAILED
        answer.return_value = NoResult(f"trial {trial.name} has no result: {error or 'it did not end'}")
    return answer
