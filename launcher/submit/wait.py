"""Staying with a sweep that Slurm runs, until every trial has ended: for `wait=true`, and sweepers that need values."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

from hydra.core.utils import JobReturn

from launcher.compose import hydra_state
from launcher.report.ending_table import render
from launcher.slurm import client
from launcher.slurm.rows import QueueRow
from launcher.status.progress import view
from launcher.submit import actions
from launcher.submit.prepare import job_return
from launcher.sweep.elements import elements
from launcher.sweep.folder import Outcome, Sweep, Trial

_ASK_S = 15.0  # between two questions to Slurm
_NEWS_S = 2.0  # the same where a result is there already, for sweepers that wait for it
_LOOK_S = 0.5  # between two looks at the trials' folders
_LAG_S = 30.0  # a trial that left the queue may show its result so much later, on a shared disk with caches
_AWAY_S = 300.0  # longest wait between two questions while Slurm does not answer


def wait_for(sweep: Sweep, trials: Sequence[Trial]) -> list[JobReturn]:
    """Watch until no trial waits or runs any more; sets the command's exit code. Ctrl-C leaves the trials to Slurm."""
    outcomes = {trial.number: Outcome(trial, "WAITING") for trial in trials}
    asked, every = 0.0, _ASK_S
    gone: dict[int, float] = {}
    try:
        with view(trials) as show:
            while any(outcome.state in ("WAITING", "RUNNING") for outcome in outcomes.values()):
                if time.monotonic() - asked >= (_NEWS_S if every == _ASK_S and _news(outcomes) else every):
                    asked = time.monotonic()
                    try:
                        rows = _rows(sweep)
                        _update(outcomes, rows, gone)
                        actions.hasten(rows.values())
                        every = _ASK_S
                    except client.SlurmError as error:
                        every = min(_AWAY_S, every * 2)
                        print(f"Slurm does not answer ({error}); asking again in {every:.0f} s", file=sys.stderr)
                show(outcomes)
                time.sleep(_LOOK_S)
            show(outcomes)
    except KeyboardInterrupt:
        print(f"no longer waiting; Slurm goes on with what is in {sweep.folder}", file=sys.stderr)
        raise
    ended = [outcomes[trial.number] for trial in trials]
    print(render(sweep, ended))
    for outcome in ended:
        if outcome.state != "DONE":
            hydra_state.exit_code = 1
            log = outcome.trial.folder / "log"
            print(f"error: trial {outcome.trial.name} {outcome.state}: {outcome.error}; logs: {log}", file=sys.stderr)
    return [job_return(outcome.trial, outcome.error) for outcome in ended]


def _rows(sweep: Sweep) -> dict[int, QueueRow]:
    """What the queue says of each trial, by number; the latest array that a trial is in counts."""
    parts = {number: [p for p in each if p.in_slurm] for number, each in elements(sweep.submitted()).items()}
    answer = client.squeue({part.job["id"] for each in parts.values() for part in each}, ended=True)
    rows = {row.name: row for row in answer}
    known = {number: [rows[part.name] for part in each if part.name in rows] for number, each in parts.items()}
    return {number: max(each, key=lambda row: row.array_id or 0) for number, each in known.items() if each}


def _update(outcomes: dict[int, Outcome], rows: dict[int, QueueRow], gone: dict[int, float]) -> None:
    trials = Counter(row.name for row in rows.values())  # of a job
    for number, outcome in outcomes.items():
        if outcome.state not in ("WAITING", "RUNNING"):
            continue
        trial, row = outcome.trial, rows.get(number)
        outlived = row is not None and trials[row.name] > 1 and trial.result() is not None  # by its job, for hours
        if row is not None and not row.state.ended and not outlived:
            outcomes[number] = Outcome(trial, "RUNNING" if row.state.phase == "running" else "WAITING", row.reason)
            gone.pop(number, None)
        elif trial.result() is not None:
            outcomes[number] = Outcome(trial, "DONE", seconds=(trial.result() or {}).get("seconds"))
        elif time.monotonic() - gone.setdefault(number, time.monotonic()) > _LAG_S or _failed(row):
            said = f"Slurm says {row.state.word}" if row else "it left Slurm's queue"
            outcomes[number] = Outcome(trial, "FAILED", f"{said}, and there is no result")


def _news(outcomes: dict[int, Outcome]) -> bool:
    going = (outcome.trial for outcome in outcomes.values() if outcome.state in ("WAITING", "RUNNING"))
    return any((trial.folder / "result.json").exists() for trial in going)


def _failed(row: QueueRow | None) -> bool:
    return row is not None and row.state.phase == "failed"
