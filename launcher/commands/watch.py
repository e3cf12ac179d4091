"""examples:
  python -m launcher watch                 the last sweep; keys: up, down, l log, c cancel, r retry, q quit
  python -m launcher watch 4711            the sweep that array 4711 belongs to
  python -m launcher watch | tee log.txt   a line for every change, until all trials have ended
Slurm is asked every half minute at most (fewer than 5 commands a minute); what a trial says of itself is read every
second. While Slurm does not answer, the age of its last answer is shown. Exit codes as `status`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from launcher.status.states import LIVE
from launcher.status.watcher import Lines, Watcher
from launcher.sweep import find
from launcher.sweep.folder import Sweep

_POLL_S = 1.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default=find.LAST, help="folder, array id, name or `last`")
    parser.add_argument("--lines", action="store_true", help="a line for every change, on a terminal too")


def run(args: argparse.Namespace) -> int:
    sweep = find.sweep(args.sweep)
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    if args.lines or not terminal:
        return follow(sweep)
    from launcher.status.screen import Screen

    return Screen(sweep).run()


def follow(sweep: Sweep) -> int:
    """Lines until all trials have ended."""
    watcher, lines = Watcher(sweep), Lines(sys.stdout)
    look = watcher.first()
    while True:
        began = time.monotonic()
        lines(look, watcher.age)
        if not set(look.counts) & LIVE:
            return look.exit_code
        time.sleep(max(_POLL_S, 5 * (time.monotonic() - began)))
        look = watcher.look()
