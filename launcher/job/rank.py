"""What srun starts for each rank: one rank of one trial. Standard library only, so that it starts in any container.

srun ... python -m launcher.job.rank TRIAL_FOLDER
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from launcher.findings import Refused
from launcher.job import node_check, ports
from launcher.sweep import metrics, rank_errors

#: Slurm's warnings: before the time limit (--signal), and of a preemption or a scancel.
WARNINGS = (signal.SIGUSR2, signal.SIGTERM)
_PATIENCE_S = 600  # ranks start as their nodes come up, with caches cold


def rank_variables(env: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables from those that srun gives a task (srun(1), OUTPUT ENVIRONMENT VARIABLES)."""
    ranks, nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_STEP_NUM_NODES") or env["SLURM_NNODES"])
    return {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "NODE_RANK": env["SLURM_NODEID"],
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks // nodes),
    }


def meet(trial: Path, env: Mapping[str, str]) -> tuple[str, int, IO[str] | None]:
    """(address, port, lock) of rank 0, which writes them into the trial's folder, where the other ranks find them.

    Each start of a job has a file of its own, so that a requeued one never reads its predecessor's.
    """
    place = trial / "log" / f"{attempt_name(env)}.{env.get('SLURM_STEP_ID', '0')}_rendezvous"
    if env["SLURM_PROCID"] == "0":
        # trials of one job begin at the same moment, in containers that may have a folder for locks each
        port, lock = ports.claim(int(env["SLURM_JOB_ID"]) + 1000 * int(env.get("SLURM_STEP_ID", "0")))
        beside = place.with_suffix(".new")
        beside.write_text(f"{_address(env)} {port}\n")
        os.replace(beside, place)
        return _address(env), port, lock
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        try:
            address, port_text = place.read_text().split()
            return address, int(port_text), None
        except FileNotFoundError:
            time.sleep(0.2)
    raise TimeoutError(f"rank 0 did not write {place} within {_PATIENCE_S} s; is the sweep's folder on a shared disk?")


def _address(env: Mapping[str, str]) -> str:
    """Slurm's name of this node where it resolves, as it does on most sites, else the host's own."""
    name = env.get("SLURMD_NODENAME", "")
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return socket.gethostname()
    return name or socket.gethostname()


def attempt_name(env: Mapping[str, str]) -> str:
    """This start of the trial: the element's own number, and how often it was requeued."""
    return f"{env['SLURM_JOB_ID']}.{env.get('SLURM_RESTART_COUNT', '0')}"


def main() -> int:
    """Exit codes: 0 done, or stopped and saved; 2 refused; 75 hung; whatever else ends a rank is noted and raised."""
    faulthandler.enable()  # a segmentation fault leaves a traceback in the log
    trial = Path(sys.argv[1])
    os.environ.update(rank_variables(os.environ), TRIAL_ATTEMPT=attempt_name(os.environ))
    from launcher.train import signals

    signals.listen(trial, WARNINGS)
    try:
        return _run(trial)
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            _note(trial, error)
        if isinstance(error, Refused):
            print(*(f"error: {finding}" for finding in error.findings), sep="\n", file=sys.stderr)
            return Refused.exit_code
        raise


def _run(trial: Path) -> int:
    if os.environ["LOCAL_RANK"] == "0":
        node_check.check(trial)
    if os.environ["RANK"] == "0":
        metrics.append_phase(trial / "metrics.jsonl", metrics.STARTING, "importing NeMo")
    address, port, lock = meet(trial, os.environ)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    from launcher.train import run_trial

    run_trial(trial, WARNINGS)
    if lock:
        lock.close()
    return 0


def _note(trial: Path, error: BaseException) -> None:
    """Where another rank has ended this one's connections, the first note says why."""
    note = rank_errors.path(trial / "log", os.environ["TRIAL_ATTEMPT"], os.environ["RANK"])
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    rank_errors.write(note, error, node=node)


if __name__ == "__main__":
    sys.exit(main())
