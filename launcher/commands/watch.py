"""examples:
  python -m launcher watch                 the last sweep; keys: up, down, l log, c cancel, r retry, q quit
  python -m launcher watch 4711            the sweep that array 4711 belongs to
  python -m launcher watch | tee log.txt   a line for every change, until all trials have ended
Slurm is asked at most every 30 s (fewer than 5 commands a minute); the trials' folders are read every second.
While Slurm does not answer, the age of its last answer is shown. The exit codes are those of `status`.
"""

from __future__ import annotations

import argparse
import sys
import time

from launcher.status import states
from launcher.status.live import LineView
from launcher.status.trial_state import LIVE
from launcher.status.watcher import Watcher
from launcher.submit import actions
from launcher.sweep import find
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.terminal import can_redraw

_POLL_S = 1.0
_OVERVIEW_S = 60.0  # between two lines about all running trials


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default=find.LAST, help="folder, array id, name or `last`")
    parser.add_argument("--lines", action="store_true", help="a line for every change, on a terminal too")


def run(args: argparse.Namespace) -> int:
    sweep = find.sweep(args.sweep)
    if args.lines or not (sys.stdin.isatty() and can_redraw(sys.stdout)):
        return follow(sweep)
    from launcher.status.screen import Screen

    return Screen(sweep, Keys()).run()


def follow(sweep: Sweep) -> int:
    """Print lines until all trials have ended."""
    watcher = Watcher(sweep)
    look = watcher.first()
    view = LineView(sweep.trials, sys.stdout, _OVERVIEW_S)
    while True:
        began = time.monotonic()
        view.show(look.trials, look.answers.troubles, watcher.age)
        if not set(look.counts) & LIVE:
            return look.exit_code
        time.sleep(max(_POLL_S, 5 * (time.monotonic() - began)))
        look = watcher.look()


class Keys:
    """What the screen's keys do to a trial. Its state may have changed since it was drawn."""

    def cancel(self, sweep: Sweep, trial: Trial) -> str:
        look = states.look(sweep)
        chosen = actions.to_cancel(look, [trial]).chosen
        return "; ".join(actions.cancel(look, chosen)) if chosen else "it has already ended"

    def retry(self, sweep: Sweep, trial: Trial) -> str:
        with actions.one_retry(sweep):
            if actions.of_local(sweep, trial):
                return f"it ran on this machine; in a shell: python -m launcher retry {trial.number}"
            if not actions.to_retry(states.look(sweep), [trial], only_failed=False).chosen:
                return "it already waits, runs or is done"
            from launcher.submit.resubmit import code_to_run, submit_again

            code = code_to_run(sweep, [trial], current=False)
            return f"submitted as array {', '.join(submit_again(sweep, [trial], code))}"
