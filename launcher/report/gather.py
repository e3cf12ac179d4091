"""Reads a sweep's folder into a Report. It can be read at any moment: what is not there yet is None."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from launcher.dotted_keys import at
from launcher.report import costs, measures, recorded, recorded_scores, trial_files
from launcher.report.costs import Course
from launcher.report.measure import Measure
from launcher.report.pools import Pool, pooled
from launcher.report.recorded_scores import RecordedScores
from launcher.report.trial_files import Config, Unreadable
from launcher.report.trials import TrialReport
from launcher.sweep import evaluation
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import BETA, Trial

if TYPE_CHECKING:
    from launcher.status.trial_state import TrialState

VARIED = (BETA, "model.seed")
"""Overrides that the report shows in columns of their own: beta, and the seed, over which it averages."""


@dataclass(frozen=True)
class Report:
    """A sweep at one moment."""

    sweep: Sweep
    made: float
    """Seconds since the epoch."""
    trials: tuple[TrialReport, ...]
    """By beta, then number."""
    pools: tuple[Pool, ...]
    """The rows of the comparison, by beta: trials that differ only in their seed are one row."""
    differences: tuple[tuple[str, dict[int, str]], ...]
    """(config key, its value in each trial by number) where the trials' configs differ."""
    troubles: tuple[str, ...] = ()

    @cached_property
    def done(self) -> list[TrialReport]:
        return [trial for trial in self.trials if trial.done]

    @cached_property
    def per(self) -> str:
        """What log-ratios are counted by: "response", or "token" with model.dpo.preference_average_log_probs."""
        average = any(at(trial.config, "model.dpo.preference_average_log_probs") for trial in self.trials)
        return "token" if average else "response"

    @cached_property
    def groups(self) -> dict[tuple[str, ...], list[Pool]]:
        """Pools that differ only in beta, by their other overrides."""
        groups: dict[tuple[str, ...], list[Pool]] = {}
        for pool in self.pools:
            if pool.beta is not None:
                groups.setdefault(pool.trials[0].setting, []).append(pool)
        return groups

    @cached_property
    def drift_measure(self) -> Measure:
        """How far policies are from the reference: the exact KL if every done trial has it, else the drift."""
        exact = bool(self.done) and all("kl" in trial.estimates for trial in self.done)
        return measures.REGISTRY["kl" if exact else "drift"]


def gather(
    sweep: Sweep, states: Iterable[TrialState] = (), troubles: Sequence[str] = (), now: float | None = None
) -> Report:
    """Read a sweep. `states` explain why a trial has no result."""
    known = {state.trial.number: state for state in states}
    trials = sweep.trials
    shared = set.intersection(*(set(trial.overrides) for trial in trials)) if trials else set()
    jobs = costs.submitted(sweep)
    unreadable: list[str] = []
    reports = [_trial(trial, shared, known.get(trial.number), jobs, unreadable) for trial in trials]
    reports.sort(key=lambda it: (math.inf if it.beta is None else it.beta, it.trial.number))
    return Report(
        sweep=sweep,
        made=time.time() if now is None else now,
        trials=tuple(reports),
        pools=tuple(pooled(reports)),
        differences=tuple(trial_files.differences({it.trial.number: it.config for it in reports})),
        troubles=(*troubles, *dict.fromkeys(unreadable)),
    )


def _trial(
    trial: Trial, shared: set[str], state: TrialState | None, jobs: costs.Submitted, unreadable: list[str]
) -> TrialReport:
    result: recorded.Result | None = None
    config: Config = {}
    course = Course()
    scores: RecordedScores | None = None
    kept: tuple[tuple[int, RecordedScores], ...] = ()
    try:
        loaded = trial_files.read_result(trial)
        result = recorded.result(loaded) if loaded else None
        config = trial_files.read_config(trial)
        course = costs.read_course(trial_files.read_metrics(trial))
        scores = recorded_scores.scores(trial_files.read_json(trial, recorded_scores.FILE) or {})
        kept = tuple((step, it) for step, it in _kept(trial) if scores and it.made == scores.made)
    except Unreadable as error:
        unreadable.append(str(error))
    devices, nodes = (recorded.integer(at(config, f"trainer.{key}")) for key in ("devices", "num_nodes"))
    ranks = devices * nodes if devices is not None and nodes is not None else None
    return TrialReport(
        trial=trial,
        result=result,
        config=config,
        course=course,
        cost=costs.cost(trial, result, course, ranks, state.restarts if state else 0, jobs),
        scores=scores,
        kept=kept,
        setting=tuple(
            word.lstrip("+")
            for word in trial.overrides
            if word not in shared and word.lstrip("+").partition("=")[0] not in VARIED
        ),
        state="DONE" if result else state.state if state else "",
        why="" if result else _why(state, course),
    )


def _kept(trial: Trial) -> tuple[tuple[int, RecordedScores], ...]:
    """(step, scores) of the checkpoints that were evaluated, by their steps. Raises Unreadable."""
    found = (trial.folder / evaluation.FOLDER).glob(f"{evaluation.STEP}*")
    steps = sorted(int(step) for path in found if (step := path.name.removeprefix(evaluation.STEP)).isdecimal())
    files = [(step, f"{evaluation.FOLDER}/{evaluation.STEP}{step}/{evaluation.SCORES}") for step in steps]
    known = [(step, recorded_scores.scores(trial_files.read_json(trial, file) or {})) for step, file in files]
    return tuple((step, scores) for step, scores in known if scores)


def _why(state: TrialState | None, course: Course) -> str:
    words = [state.state.lower(), state.reason, state.error] if state else []
    return ": ".join(filter(None, words)) or ("no result yet" if course.starts else "not started")
