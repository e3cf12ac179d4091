"""examples:
  python -m launcher cancel                  all waiting and running trials of the last sweep; asks first
  python -m launcher cancel 1 3-5            these trials only
  python -m launcher cancel 2 runs/tune      trial 2 of this sweep
  python -m launcher cancel --sweep 4711 -y  all of array 4711's sweep, without asking
Results and checkpoints stay in the trials' folders; `retry` goes on from there.
"""

from __future__ import annotations

import argparse
import sys

from launcher.slurm.rows import array_spec
from launcher.status import states
from launcher.submit import actions
from launcher.sweep import find


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="TRIAL|SWEEP", nargs="*", help="trials (0, 2-4); a sweep's folder or name")
    parser.add_argument("-s", "--sweep", metavar="SWEEP", help="folder, array id, name or `last`")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")


def run(args: argparse.Namespace) -> int:
    sweep, wanted = find.trials_and_sweep(args.words, args.sweep)
    sweep.refuse_foreign("cancel")
    look = states.look(sweep)
    selection = actions.to_cancel(look, wanted)
    for state, why in selection.left:
        print(f"trial {state.trial.name} {why}: nothing to cancel", file=sys.stderr)
    if not selection.chosen:
        print(f"no trial of {sweep.folder} waits or runs")
        return 0
    for trouble in look.answers.troubles:
        print(f"! {trouble}", file=sys.stderr)
    numbers = [state.trial.number for state in selection.chosen]
    running = sum(state.state != "WAITING" for state in selection.chosen)
    what = f"trial{'s' if len(numbers) > 1 else ''} {array_spec(numbers)} of {sweep.folder} ({running} running)"
    if not args.yes and not agreed(f"cancel {what}?"):
        print("nothing was cancelled")
        return 0
    for line in actions.cancel(look, selection.chosen):
        print(line)
    print(f"cancelled {what}")
    return 0


def agreed(question: str) -> bool:
    """Ask for confirmation if stdin is a terminal; in a script, giving the command counts as agreement.

    The question goes to stderr, since stdout may be a pipe.
    """
    if not sys.stdin.isatty():
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
