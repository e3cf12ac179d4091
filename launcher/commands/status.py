"""examples:
  python -m launcher status                     the last sweep
  python -m launcher status 4711                the sweep that array 4711 belongs to
  python -m launcher status runs/tune --json | jq -r '.trials[] | select(.state == "FAILED") | .number'

exit codes: 0 all trials are done, 1 all have ended, some without a result, 2 usage, 3 not all have ended (or it is not
known). A trial is done only if its result.json exists.

--json, format 1; later versions only add keys. Times are seconds since 1970, durations are seconds; null: not known.
  format, asked (when), troubles (commands that did not answer), exit_code, counts {state: number of trials}
  sweep    {folder, id, experiment, created}
  trials   [{number, overrides, beta, folder, state, reason, error, rank, slurm, slurm_reason, exit_code, job,
             nodes, node_count, elapsed, limit, restarts, expected_start, phase, step, max_steps, loss, accuracy,
             val_loss, val_accuracy, seconds_left, silent, log, starts, evaluation}]
  starts   [{name, chain, nodes, began, first_step, ended, last_step, kind, why, then, blamed}] of a trial on Slurm;
             attempt is the former name of name
  bad_nodes  [{name, cluster, why, trial, time}] that the sweep avoids
  state    WAITING RUNNING STOPPING DONE FAILED CANCELLED, UNSUBMITTED (sbatch did not accept it), UNKNOWN (Slurm does
             not answer, or the job is on another cluster)
  slurm    Slurm's own state, such as TIMEOUT; exit_code as sacct writes it, such as 3:0
  error    of the rank that failed first; rank: which one; looked up for the first 50 failed trials
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.slurm import run as slurm_command
from launcher.status import states
from launcher.status.table import table
from launcher.status.trial_state import Look, TrialState
from launcher.sweep import bad_nodes, find

FORMAT = 1
_SLOW_S = 3.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default=find.LAST, help="folder, array id, name or `last`")
    parser.add_argument("--json", action="store_true", help="for scripts; see below")
    parser.add_argument("--full", action="store_true", help="a row for every trial, also for many equal waiting ones")
    parser.add_argument("--debug", metavar="FILE", type=Path, help="append Slurm's raw answers to FILE")


def run(args: argparse.Namespace) -> int:
    sweep = find.sweep(args.sweep)
    if args.debug:
        slurm_command.hooks.append(slurm_command.log_to(args.debug))
    patience = threading.Timer(_SLOW_S, print, ["Slurm is slow to answer ..."], {"file": sys.stderr, "flush": True})
    patience.daemon = True
    patience.start()
    look = states.look(sweep)
    patience.cancel()
    if args.json:
        print(json.dumps(as_json(look), indent=1, allow_nan=False))
    else:
        out = sys.stdout
        colour = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print(table(look, max(80, shutil.get_terminal_size((80, 24)).columns), colour=colour, full=args.full))
    return look.exit_code


def as_json(look: Look) -> dict[str, object]:
    """The object that --json prints."""
    data = look.sweep.data
    return {
        "format": FORMAT,
        "asked": look.answers.time,
        "troubles": list(look.answers.troubles),
        "exit_code": look.exit_code,
        "counts": look.counts,
        "sweep": {
            "folder": str(look.sweep.folder),
            "id": data.get("id"),
            "experiment": look.sweep.experiment.get("name"),
            "created": data.get("created"),
        },
        "trials": [_trial(state) for state in look.trials],
        "bad_nodes": [asdict(node) for node in bad_nodes.read(look.sweep.folder)],
    }


def _trial(state: TrialState) -> dict[str, object]:
    progress = state.progress
    values: dict[str, Any] = {
        "number": state.trial.number,
        "overrides": list(state.trial.overrides),
        "beta": state.trial.beta,
        "folder": str(state.trial.folder),
        "state": state.state,
        "reason": state.reason,
        "error": state.error,
        "rank": state.rank,
        "slurm": state.slurm,
        "slurm_reason": state.slurm_reason,
        "exit_code": state.exit_code,
        "job": state.job,
        "nodes": state.nodes,
        "node_count": state.node_count,
        "elapsed": state.elapsed,
        "limit": state.limit,
        "restarts": state.restarts,
        "evaluation": state.evaluation,
        "expected_start": state.expected,
        "phase": progress.phase or None,
        "step": progress.step,
        "max_steps": progress.max_steps,
        "loss": progress.loss,
        "accuracy": progress.accuracy,
        "val_loss": progress.val_loss,
        "val_accuracy": progress.val_accuracy,
        "seconds_left": progress.eta if state.state == "RUNNING" else None,
        "silent": progress.silent,
        "log": str(state.log) if state.log else None,
        "starts": [{**asdict(start), "attempt": start.name} for start in state.starts],
    }
    # JSON has neither inf (no limit) nor nan (diverged)
    endless = {key for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**values, **dict.fromkeys(endless)}
