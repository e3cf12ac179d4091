"""The evaluation behind a trial's training: `python -m launcher.evaluate SWEEP TRIAL...`, as local runs and Slurm start
it. Trials without a result are left out. Exit codes: 0 evaluated, 1 a trial could not be, 2 refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.evaluate.run import evaluate
from launcher.findings import LauncherError
from launcher.local.end_with_parent import die_with_parent
from launcher.sweep import find
from launcher.sweep.folder import Sweep


def main(words: list[str]) -> int:
    die_with_parent()
    try:
        sweep = Sweep.load(Path(words[0]))
        trials = [trial for trial in find.trials(sweep, map(int, words[1:])) if trial.has_result()]
        failed = evaluate(sweep, trials)
    except LauncherError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for title, why in failed.items():
        print(f"error: {title} could not be evaluated: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
