"""Environment variables, from a user's profile or a surrounding job, that would change what a script requests."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from launcher.units import parse_time_limit

# Slurm variables that do not describe a job; commands started inside a job need them too.
_LASTING = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_DEBUG_FLAGS")
#: Prefixes of variables that Slurm, srun and its MPI plugins set for a job, a step or a task.
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
#: Options that no profile may set: standard error has to go where standard output goes, sbatch has to return at
#: once, and the job needs the environment of the shell that submits it.
_NEVER = ("ERROR", "INPUT", "WAIT", "EXPORT")

#: Keys of `cluster` -> the variable that fills them where they are null, since the script then has no line for it.
_FILLED = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
}


def filled(cluster: Mapping[str, object]) -> dict[str, str]:
    """What sbatch takes from the user's environment for keys of `cluster` that are null."""
    given = {key: os.environ.get(variable, "") for key, variable in _FILLED.items() if cluster[key] is None}
    try:
        parse_time_limit(given.get("time", 1))
    except ValueError:
        given["time"] = ""  # UNLIMITED, or a text that sbatch refuses
    return {key: value for key, value in given.items() if value}


def without_job(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of the job in which this process or its shell runs.

    sbatch would pass them on, and SLURM_MEM_PER_NODE, SLURM_CPU_BIND, SRUN_CPUS_PER_TASK and others break the new job's
    srun. A shell may have some of them without SLURM_JOB_ID.
    """
    return {name: value for name, value in env.items() if not name.startswith(_OF_A_JOB) or name in _LASTING}


def overriding(script: str, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The SBATCH_ variables in `env` that would override a script's #SBATCH lines, with their values."""
    env = os.environ if env is None else env
    names = {f"SBATCH_{name}" for name in _NEVER}
    for option in re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE):
        names |= {f"SBATCH_{name}" for name in _VARIABLES.get(option, (option.upper().replace("-", "_"),))}
    return {name: env[name] for name in sorted(names) if name in env}
