"""python -m launcher.train TRIAL_DIR: one rank of a trial, the one that RANK and WORLD_SIZE describe."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher.findings import Refused
from launcher.train import run_trial


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, or stopped early and to be run again; 2 refused. Everything else is a traceback and 1."""
    parser = argparse.ArgumentParser(prog="python -m launcher.train", description=(__doc__ or "").split(": ", 1)[1])
    parser.add_argument("trial_dir", type=Path, metavar="TRIAL_DIR", help="a folder with a config.yaml")
    try:
        run_trial(parser.parse_args(argv).trial_dir)
    except Refused as refused:
        for finding in refused.findings:
            print(f"error: {finding}", file=sys.stderr)
        return Refused.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
