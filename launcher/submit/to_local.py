"""The Hydra launcher `preference_local`: it checks the trials, writes the folder, runs them here, compares them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn

from launcher import machine
from launcher.check import installed, preflight
from launcher.compose import hydra_state
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding
from launcher.local import capacity, run
from launcher.report.ending_table import render
from launcher.status.live import live_view
from launcher.submit.prepare import checked_trials, job_return
from launcher.trial_config.validate import load


def launch(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
    """Raises Refused before anything is written; RunStopped after Ctrl-C, when nothing is running any more."""
    sweep, trials = checked_trials(launcher, job_overrides, _check, _warn)
    config = load(trials[0].folder)
    print(f"{len(trials)} trial{'s' if len(trials) > 1 else ''}, results in {sweep.folder}", flush=True)
    print(preflight.summary(config, len(trials)), flush=True)
    with live_view(trials) as view:
        states = run.run(sweep, trials, on_update=view)
    print(render(sweep, states))
    for state in states:
        if state.state != "DONE":
            hydra_state.exit_code = 1
            print(f"error: trial {state.trial.name} failed: {state.remark}; log: {state.log}", file=sys.stderr)
    return [job_return(state.trial, state.remark) for state in states]


def _check(trials: Sequence[PlannedTrial]) -> list[Finding]:
    here = machine.look()
    unfit = (finding for trial in trials for finding in capacity.check(trial.config.plain, here))
    return list(dict.fromkeys([*unfit, *(finding for trial in trials for finding in installed.findings(trial.config))]))


def _warn(trials: Sequence[PlannedTrial], folder: Path) -> list[Finding]:
    return list(dict.fromkeys(finding for trial in trials for finding in installed.warnings(trial.config)))
