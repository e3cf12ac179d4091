"""The function that submitit calls in each local rank's process. See launcher.train.slurm_rank for Slurm."""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.local.end_with_parent import die_with_parent
from launcher.sweep import metrics, rank_errors

if TYPE_CHECKING:
    from submitit.core.job_environment import JobEnvironment

TRAIN = "launcher.train:run_trial"


@dataclass(frozen=True)
class RunRank:
    """The callable that submitit pickles: it has no code and no config, which are read when it runs."""

    folder: str
    """The trial's folder."""
    port: int
    """The port on which rank 0 listens."""
    entry: str = TRAIN
    """module:function, called with the trial's folder."""

    def __call__(self) -> None:
        """Run this rank. An error is recorded in log/<job id>_<rank>_error.json and raised again."""
        import submitit

        die_with_parent()
        # submitit ignores SIGTERM, but a rank that is asked to end must end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.enable()  # a segmentation fault leaves a traceback in the log
        env = submitit.JobEnvironment()
        os.environ.update(rank_variables(env, self.port))
        try:
            if env.global_rank == 0:
                metrics.append_phase(Path(self.folder) / "metrics.jsonl", metrics.STARTING, "importing NeMo")
            module, _, function = self.entry.partition(":")
            getattr(importlib.import_module(module), function)(Path(self.folder))
        except BaseException as error:
            if not (isinstance(error, SystemExit) and not error.code):
                rank_errors.write(rank_errors.path(env.paths.folder, env.job_id, env.global_rank), error)
            raise


def rank_variables(env: JobEnvironment, port: int) -> dict[str, str]:
    """The variables from which torch.distributed learns its ranks (env:// initialisation), all on this machine."""
    return {
        "RANK": str(env.global_rank),
        "LOCAL_RANK": str(env.local_rank),
        "WORLD_SIZE": str(env.num_tasks),
        "LOCAL_WORLD_SIZE": str(env.num_tasks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
