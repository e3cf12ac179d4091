"""Evaluates the trials of a sweep one after the other, and prints what was measured."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launcher.evaluate import scores
from launcher.evaluate.evaluator import Evaluator
from launcher.evaluate.suites import Results, Suites, table
from launcher.findings import Finding, LauncherError, Refused
from launcher.sweep import checkpoints
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial


def evaluate(
    sweep: Sweep,
    trials: Sequence[Trial],
    beside: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    *,
    again: bool = False,
    suites: Suites | None = None,
    kept: bool = False,
) -> dict[str, Exception]:
    """Evaluate trials and what is put beside them, one after the other. Returns what could not be, and why.

    `kept`: also each checkpoint that a trial kept before its last step.

    Prints progress and, at the end, a table. Raises Refused for another user's sweep, and for two `beside` of one name.
    """

    def say(line: str) -> None:
        print(line, flush=True)

    names = [Path(path).name for path in beside]
    if alike := sorted({name for name in names if names.count(name) > 1}):
        why = "is the name of several of the folders, and results are kept by name"
        raise Refused([Finding("--beside", ", ".join(alike), why, "give one of them another name")])
    with contextlib.closing(Evaluator(sweep, changes or {}, say, again=again)) as evaluator:
        return _evaluate(evaluator, sweep, trials, beside, suites, kept, say)


def _evaluate(
    evaluator: Evaluator,
    sweep: Sweep,
    trials: Sequence[Trial],
    beside: Sequence[str],
    suites: Suites | None,
    kept: bool,
    say: Callable[[str], None],
) -> dict[str, Exception]:
    failed: dict[str, Exception] = {}
    rows: dict[str, dict[str, Any]] = {}
    todo: dict[str, Callable[[], dict[str, Any]]] = {
        f"trial {trial.name}": partial(evaluator.trial, trial) for trial in trials
    }
    for trial in trials if kept else ():
        for checkpoint in checkpoints.kept(trial.folder):
            if checkpoint.step != (trial.result() or {}).get("steps"):
                title = f"trial {trial.name}, step {checkpoint.step}"
                todo[title] = partial(evaluator.trial, trial, checkpoint)
    todo |= {Path(path).name: partial(evaluator.beside, Path(path)) for path in beside}
    for title, job in todo.items():
        try:
            rows[title] = job()
        except LauncherError as error:
            failed[title] = error
        except Exception as error:  # of the models; the others are evaluated all the same
            traceback.print_exc()
            failed[title] = error
    if rows:
        say(scores.table(rows))
    if suites:
        evaluator.close()  # lm-eval needs the memory
        say(table(_suites(evaluator, sweep, trials, suites, failed, say)))
    return failed


def _suites(
    evaluator: Evaluator,
    sweep: Sweep,
    trials: Sequence[Trial],
    suites: Suites,
    failed: dict[str, Exception],
    say: Callable[[str], None],
) -> dict[str, Results]:
    """The suites' results by policy; the base model's are made once for the sweep."""
    found: dict[str, Results] = {}
    for trial in trials:
        try:
            with evaluator.exported(trial) as (base, policy, made_with):
                reference, without = sweep.folder / "evaluation" / made_with["base"][:12], {**made_with, "policy": ""}
                found["reference"] = suites.results(reference, base, None, without, say)
                own = trial.folder / "evaluation"
                found[f"trial {trial.name}"] = suites.results(own, base, policy, made_with, say)
        except LauncherError as error:
            failed[f"trial {trial.name}"] = error
    return found
