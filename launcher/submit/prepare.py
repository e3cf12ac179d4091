"""The way every sweep takes before anything runs: compose all trials, check them all, write the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from launcher import compose, preflight, state
from launcher.compose import TrialConfig
from launcher.findings import Finding, Refused
from launcher.sweep import Sweep, Trial

Check = Callable[[Sequence[TrialConfig]], list[Finding]]


def checked_trials(
    launcher: Any, job_overrides: Sequence[Sequence[str]], check: Check | None = None
) -> tuple[Sweep, list[Trial]]:
    """The trials of one batch of overrides, checked and written; `launcher` is a Hydra launcher plugin.

    The first batch makes the sweep's folder, later ones (a sweeper that learns from results) add to it. `check` finds
    what only this kind of launcher can say. Raises Refused, with nothing written, if a trial would fail.
    """
    configs = compose.trial_configs(launcher.hydra_context.config_loader, launcher.config, job_overrides, state.forced)
    folder = Path(launcher.config.hydra.sweep.dir).expanduser().absolute()
    sweep: Sweep | None = getattr(launcher, "sweep", None)
    findings = preflight.findings(configs, None if sweep else folder)
    findings += check(configs) if check else []
    if findings:
        raise Refused(findings)
    pairs = [(trial.overrides, trial.config) for trial in configs]
    if sweep is not None:
        return sweep, sweep.add_trials(pairs)
    launcher.sweep = Sweep.create(
        folder, command=state.command, experiment=configs[0].config["experiment"], trials=pairs
    )
    return launcher.sweep, launcher.sweep.trials


def job_return(trial: Trial, error: str = "") -> JobReturn:
    """What Hydra, and a sweeper that needs values, is told of one trial: its validation loss, or why there is none."""
    answer = JobReturn(overrides=list(trial.overrides))
    result = trial.result()
    if result is not None:
        answer.status = JobStatus.COMPLETED
        answer.return_value = result["final"]["val/loss"]
    else:
        answer.status = JobStatus.FAILED
        answer.return_value = RuntimeError(f"trial {trial.name} has no result: {error or 'it did not end'}")
    return answer
