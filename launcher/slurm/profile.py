"""Variables of a user's profile and of a surrounding job, which would change what a script asks Slurm for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

# What a job finds in its environment that is not about the job; a command started in a job needs it as well.
_LASTING = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_DEBUG_FLAGS")
#: Beginnings of variables that Slurm, srun and its MPI plugins set for a job, a step or a task.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMI2_", "PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER")
# sbatch(1), "INPUT ENVIRONMENT VARIABLES": SBATCH_ and the option's name in capitals, except for these.
_VARIABLES = {
    "array": ("ARRAY_INX",),
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "mem-per-cpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "mem-per-gpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
    "no-requeue": ("REQUEUE", "NO_REQUEUE"),
}
#: What no script may get from a profile: standard error has to go where standard output goes, sbatch has to return at
#: once, and the job needs the environment of the shell that submits it.
_NEVER = ("ERROR", "INPUT", "WAIT", "EXPORT")


def without_job(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables of a job that this process, or the shell that it runs in, belongs to.

    sbatch would hand them on, and SLURM_MEM_PER_NODE, SLURM_CPU_BIND, SRUN_CPUS_PER_TASK and others break the new job's
    srun. A shell may have some of them without SLURM_JOB_ID.
    """
    return {name: value for name, value in env.items() if not name.startswith(_OF_A_JOB) or name in _LASTING}


def overriding(script: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The SBATCH_ variables that sbatch would prefer to the #SBATCH lines of a script."""
    env = os.environ if env is None else env
    names = {f"SBATCH_{name}" for name in _NEVER}
    for option in re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE):
        names |= {f"SBATCH_{name}" for name in _VARIABLES.get(option, (option.upper().replace("-", "_"),))}
    return {name: env[name] for name in sorted(names) if name in env}
