"""Starting a trial's controller and ranks through submitit, and ending all of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

import launcher
from launcher import machine
from launcher.local.controller import GRACE, JOB_ID
from launcher.local.end_with_parent import PARENT
from launcher.sweep.logs import log_of

_FOR_EVER_MIN = 60 * 24 * 365
# Set by a surrounding batch job or launcher for its own ranks; Lightning would use them for ours.
_FOREIGN = ("SLURM_", "SUBMITIT_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_")
_OWN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class TrialExecutor(LocalExecutor):
    """submitit's local executor with TrialController, which runs in its own session.

    Ctrl-C in a terminal reaches every process of the launcher's group; in their own session, only the launcher ends the
    ranks, in order and as one group. CUDA_VISIBLE_DEVICES stays as in `env`; submitit would set it.
    """

    def __init__(self, folder: Path, job_id: str, env: dict[str, str]) -> None:
        super().__init__(folder)
        self.job_id = job_id
        self.env = env

    def _submit_command(self, command: str) -> LocalJob[Any]:
        ranks = self.parameters["tasks_per_node"]
        env = {
            **self.env,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(ranks),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * _FOR_EVER_MIN),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            JOB_ID: self.job_id,
            PARENT: str(os.getpid()),
        }
        with log_of(self.folder, self.job_id, 0).open("ab") as log:  # for errors before the ranks start
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.local.controller", str(self.folder)],
                env=env,
                cwd=self.folder.parent.parent,  # the sweep's folder: older Pythons import from the working directory
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalJob(folder=self.folder, job_id=self.job_id, tasks=list(range(ranks)), process=process)


def start(
    task: Callable[[], object], folder: Path, ranks: int, env: dict[str, str]
) -> tuple[str, subprocess.Popen[bytes]]:
    """Run `task` in `ranks` processes, whose files go to `folder`. Returns the start's name and its controller."""
    folder.mkdir(exist_ok=True)
    job_id = _new_start(folder)
    executor = TrialExecutor(folder, job_id, env)
    executor.update_parameters(tasks_per_node=ranks, timeout_min=_FOR_EVER_MIN)
    job = executor.submit(task)
    assert isinstance(job, LocalJob) and job._process is not None
    return job_id, job._process


def _new_start(folder: Path) -> str:
    """local1, local2, ...: a new start of a trial does not touch the files of earlier ones."""
    known = [re.match(r"local(\d+)_", path.name) for path in folder.iterdir()]
    number = max((int(match.group(1)) for match in known if match), default=0) + 1
    while True:
        try:
            log_of(folder, f"local{number}", 0).open("xb").close()
        except FileExistsError:
            number += 1
        else:
            return f"local{number}"


def environment(*, threads: int, gpus: tuple[str, ...] | None, grace_s: float, code: str = "") -> dict[str, str]:
    """The ranks' environment: this one, with their cores and GPUs, without variables of other launchers' ranks.

    A number of threads that the user has set is kept. `gpus`: None leaves CUDA_VISIBLE_DEVICES unchanged. `code` is the
    folder from which the package `launcher` is imported: the sweep's own copy.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN) and name not in _OWN}
    if _THREADS[0] not in env:
        env.update(dict.fromkeys(_THREADS, str(threads)))
    machine.share_cores(env)
    if gpus is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    root = str(Path(launcher.__file__).resolve().parents[1])
    clone = "" if "site-packages" in root or "dist-packages" in root else root
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (code, clone, env.get("PYTHONPATH"))))
    env["PYTHONSAFEPATH"] = "1"  # Python 3.11 and later: do not import from the working directory
    env[GRACE] = str(grace_s)
    return env


def tidy(folder: Path, job_id: str) -> None:
    """Delete submitit's pickles of a start that has ended: nothing reads them."""
    for path in folder.glob(f"{job_id}_*.pkl"):
        path.unlink(missing_ok=True)


def kill_group(group: int, patience_s: float = 5.0) -> list[int]:
    """Kill every process of a group and wait until they are gone. Returns those that do not end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # no such group (any more)
        os.killpg(group, signal.SIGKILL)
    end = time.monotonic() + patience_s
    while (left := members(group)) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def members(group: int) -> list[int]:
    """Ids of the living processes of a process group; zombies are left out."""
    living = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent group ...; a name may contain anything, even a parenthesis (proc(5))
            state, _, pgrp = path.read_text(errors="replace").rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if int(pgrp) == group and state not in "ZX":
            living.append(int(path.parent.name))
    return living
