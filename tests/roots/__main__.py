"""Run a command in a Debian root with another Slurm: `python -m tests.roots 24.11 -- python -m pytest tests/slurm`."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from tests.roots.build import SUITES, CannotBuild, build, host_suite
from tests.roots.enter import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.roots", description=__doc__)
    parser.add_argument("slurm", choices=sorted(SUITES), help="the version of Slurm")
    parser.add_argument("command", nargs="+", help="the command to run, after --")
    options = parser.parse_args()
    suite = SUITES[options.slurm]
    if suite == host_suite():
        return subprocess.run(options.command).returncode
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder for /tmp is removed
    try:
        root = build(suite, lambda line: print("tests.roots:", line, file=sys.stderr, flush=True))
    except CannotBuild as error:
        print(f"tests.roots: cannot build a root with Slurm {options.slurm}: {error}", file=sys.stderr)
        return 3
    return run(root, options.command)


if __name__ == "__main__":
    sys.exit(main())
