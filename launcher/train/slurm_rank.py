"""The program that srun starts for each rank of a trial, in any container that has NeMo.

srun ... python -m launcher.train.slurm_rank TRIAL_FOLDER
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

from launcher.findings import Refused
from launcher.job import node_check, ranks
from launcher.sweep import metrics, rank_errors
from launcher.train import run_trial, signals

#: Signals that Slurm sends as warnings: USR2 before the time limit (--signal), TERM at preemption or scancel.
WARNINGS = (signal.SIGUSR2, signal.SIGTERM)


def main() -> int:
    """Exit codes: 0 done, or stopped and saved; 2 refused; 75 hung; any other error is recorded and raised."""
    faulthandler.enable()  # a segmentation fault leaves a traceback in the log
    trial = Path(sys.argv[1])
    os.environ.update(ranks.writable_caches(os.environ))
    os.environ.update(ranks.rank_variables(os.environ), TRIAL_ATTEMPT=ranks.start_name(os.environ))
    signals.listen(trial, WARNINGS)
    try:
        return _train(trial)
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            note = rank_errors.path(trial / "log", os.environ["TRIAL_ATTEMPT"], os.environ["RANK"])
            rank_errors.write(note, error, node=ranks.node_name(os.environ))
        if isinstance(error, Refused):
            print(*(f"error: {finding}" for finding in error.findings), sep="\n", file=sys.stderr)
            return Refused.exit_code
        raise


def _train(trial: Path) -> int:
    if os.environ["LOCAL_RANK"] == "0":
        node_check.check(trial)
    if os.environ["RANK"] == "0":
        metrics.append_phase(trial / "metrics.jsonl", metrics.STARTING, "importing NeMo")
    address, port, lock = ranks.meet(trial, os.environ)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    run_trial(trial, WARNINGS)
    if lock:
        lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
