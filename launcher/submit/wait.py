"""Waits until every trial of a sweep on Slurm has ended: for `wait=true`, and for sweepers that need values."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from hydra.core.utils import JobReturn

from launcher.compose import hydra_state
from launcher.report.ending_table import render
from launcher.status.live import live_view
from launcher.status.trial_state import LIVE, TrialState
from launcher.status.watcher import Watcher
from launcher.submit.prepare import job_return
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

_LOOK_S = 0.5  # between two readings of the trials' folders
_LAG_S = 30.0  # on a shared disk with caches, a result may appear so long after the trial left the queue


def wait_for(sweep: Sweep, trials: Sequence[Trial]) -> list[JobReturn]:
    """Watch until no trial waits or runs; sets the command's exit code. After Ctrl-C the trials go on in Slurm."""
    try:
        ended = _watch(sweep, trials)
    except KeyboardInterrupt:
        print(f"no longer waiting; Slurm continues the trials in {sweep.folder}", file=sys.stderr)
        raise
    print(render(sweep, ended))
    for state in ended:
        if state.state != "DONE":
            hydra_state.exit_code = 1
            log = state.log or state.trial.folder / "log"
            print(f"error: trial {state.trial.name} {state.state}: {state.remark}; log: {log}", file=sys.stderr)
    return [job_return(state.trial, state.remark) for state in ended]


def _watch(sweep: Sweep, trials: Sequence[Trial]) -> list[TrialState]:
    """The last states of the trials."""
    numbers = {trial.number for trial in trials}
    watcher = Watcher(sweep)
    look = watcher.first()
    ended_since: dict[int, float] = {}
    with live_view(trials) as view:
        while True:
            states = [state for state in look.trials if state.trial.number in numbers]
            open_ = {state.trial.number for state in states if not _is_final(state, ended_since)}
            view([_leaving(s) if s.trial.number in open_ else s for s in states], look.answers.troubles, watcher.age)
            if not open_:
                return states
            time.sleep(_LOOK_S)
            look = watcher.look()


def _leaving(state: TrialState) -> TrialState:
    """The state to show for a trial that has left the queue and may still prove to be done."""
    if state.state in LIVE:
        return state
    return replace(state, state="STOPPING", reason="has left Slurm's queue; its result may follow", error="")


def _is_final(state: TrialState, ended_since: dict[int, float]) -> bool:
    """Whether the trial's state will not change by itself. `ended_since`: when each trial was first seen as ended."""
    if state.state == "DONE":
        return True
    if state.state in LIVE:
        ended_since.pop(state.trial.number, None)
        return False
    if state.slurm not in ("", "COMPLETED"):  # Slurm itself reports that it did not end well
        return True
    return time.monotonic() - ended_since.setdefault(state.trial.number, time.monotonic()) > _LAG_S
