"""The text of a sweep's sbatch script: a pure function of a request. Printing it is the dry run."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.findings import Finding, Refused
from launcher.slurm import template
from launcher.slurm.container import Inside
from launcher.trial_config.cluster import Cluster

#: Keys of `cluster` that are sbatch's own options, under submitit's names for them.
PLAIN = (
    "partition", "account", "qos", "constraint", "exclude", "nodelist", "mail_type", "mail_user", "comment",
    "cpus_per_task", "gpus_per_node", "exclusive",
)  # fmt: skip
#: Options that the launcher sets itself.
OWN = (
    "nodes", "ntasks_per_node", "array", "output", "error", "open-mode", "job_name", "signal", "requeue", "no-requeue",
    "no_requeue", "parsable",
)  # fmt: skip
#: Options that have a key under `cluster`. Without gpus_per_node: sbatch also accepts GPU types there.
_KEYS = (*(name for name in PLAIN if name != "gpus_per_node"), "time", "reservation")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ArrayRequest:
    """Everything needed to render and submit one array."""

    sweep: Path
    name: str
    """Job name."""
    trials: Sequence[int]
    """Trial numbers in the order of the elements. MaxArraySize limits the index, so every array starts at 0."""
    nodes: int
    ranks_per_node: int
    cluster: Cluster
    """The trials' `cluster` config."""
    share: int = 1
    """How many trials one element runs side by side on its node."""
    python_on_node: str = sys.executable
    """The Python that handles restarts. It runs outside any container, where Slurm's commands are."""
    container: Inside = Inside()
    pythonpath: str = ""
    """What Python imports the package `launcher` from; empty if Python finds it anyway."""
    scripts: Path | None = None
    """The folder of functions.sh; None: sbatch/."""
    code: int = 0
    """The number of the copy of the launcher's code (launcher.sweep.kept_code) that `scripts` and `pythonpath` name."""
    cluster_name: str = ""
    """Slurm's name of the cluster that gets the array; "" if it is not known."""
    after: Sequence[int] = ()
    """Jobs that have to succeed first; if one fails, Slurm cancels the array."""


def text(request: ArrayRequest) -> str:
    """The script's text. Raises Refused if an option cannot be written into a script."""
    output = f'exec >>{shlex.quote(f"{request.sweep}/slurm/")}"${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID.out" 2>&1'
    return template.fill(
        "sweep",
        directives(request),
        {
            **surroundings(request.cluster.variables, request.container, request.pythonpath),
            "srun_args": [*request.container.srun_args, *request.cluster.srun_args],
            "sweep": request.sweep,
            "trials": request.trials,
            **ranks(request),
        },
        first=[output] if "\n" in str(request.sweep) else [],  # a #SBATCH line cannot contain a line break
        setup=request.cluster.setup,
        teardown=request.cluster.teardown,
        scripts=request.scripts,
    )


def surroundings(environment: Mapping[str, str], container: Inside, pythonpath: str) -> dict[str, template.Value]:
    """The assignments for PYTHONPATH, environment and container. Raises Refused (see `exports`)."""
    return {
        "pythonpath": pythonpath,
        "environment": [f"{name}={value}" for name, value in exports(environment)],
        "container": container.runtime,
    }


def ranks(request: ArrayRequest) -> dict[str, template.Value]:
    """The assignments about a trial's ranks."""
    return {
        "per_element": request.share,
        "ranks_per_node": request.ranks_per_node,
        "python": [*request.container.prefix, template.Words(request.cluster.python_words)],
        "python_on_node": request.python_on_node,
    }


def directives(request: ArrayRequest) -> list[str]:
    """The #SBATCH lines. submitit writes them, so that its parameters mean the same here."""
    from submitit.slurm.slurm import _make_sbatch_string

    made = _make_sbatch_string(command="", folder=request.sweep / "slurm", **parameters(request))
    return [line for line in made.splitlines() if line.startswith("#SBATCH")]


def parameters(request: ArrayRequest) -> dict[str, Any]:
    """submitit's parameters for a request. Raises Refused with the options that cannot be used."""
    cluster = request.cluster
    known: dict[str, Any] = {
        "job_name": one_line(request.name),
        "nodes": request.nodes,
        "ntasks_per_node": request.ranks_per_node * request.share,
        "time": cluster.time,
        "signal_delay_s": cluster.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default wckey exists at no site
        **{name: getattr(cluster, name) for name in PLAIN},
    }
    if cluster.mem_gb is not None:
        known["mem"] = f"{cluster.memory_mb}M" if cluster.mem_gb else "0"  # sbatch takes no fractions
    if cluster.gpus_per_node:
        count = cluster.gpus * request.share
        known["gpus_per_node"] = f"{cluster.gpu_kind}:{count}" if cluster.gpu_kind else count
    free: dict[str, Any] = {}
    findings = []
    for option, value in cluster.sbatch.items():
        name = str(option).replace("-", "_")
        if not _NAME.fullmatch(name) or str(option).startswith(("-", "_")):
            findings.append(
                Finding(f"cluster.sbatch.{option}", "", "is no name of an option", "write it without dashes")
            )
        elif str(option) in OWN or name in OWN:
            findings.append(Finding(f"cluster.sbatch.{option}", str(value), "is set by the launcher itself", "drop it"))
        elif name in _KEYS:
            why = "has a key of its own, whose value is checked"
            findings.append(Finding(f"cluster.sbatch.{option}", str(value), why, f"write cluster.{name}={value}"))
        elif name in _submitit_names():
            known[name] = value
        else:
            free[str(option)] = value
    chosen = {str(option).replace("-", "_") for option in cluster.sbatch}
    if request.share > 1 and not chosen & {"ntasks_per_core", "threads_per_core", "hint"}:
        free["ntasks-per-core"] = 1  # a step takes whole cores: if two shared a core, one would wait
    if cluster.reservation is not None:
        free["reservation"] = cluster.reservation
    if request.after:
        done_first = f"afterok:{':'.join(str(job) for job in request.after)}"
        known["dependency"] = ",".join(filter(None, [known.get("dependency"), done_first]))
        free["kill-on-invalid-dep"] = "yes"
    for name, value in [*known.items(), *free.items()]:
        if name != "comment" and "\n" in str(value):
            findings.append(Finding(f"cluster.{name}", str(value), "has a line break", "write it in one line"))
    if findings:
        raise Refused(findings)
    if known.get("comment") is not None:
        known["comment"] = one_line(str(known["comment"]))
    count = math.ceil(len(request.trials) / request.share)
    at_once = max(1, (cluster.array_parallelism or 1) // request.share)
    free |= {
        "array": f"0-{count - 1}%{min(count, at_once)}",
        "output": output(request.sweep),
        "requeue" if cluster.requeue else "no-requeue": True,
    }
    given = {name: value for name, value in known.items() if value is not None or name == "wckey"}
    return {**given, "additional_parameters": free}


def output(sweep: Path) -> str:
    """The value of --output. Slurm replaces % and a letter, and a #SBATCH line cannot contain a line break."""
    name = str(sweep).replace("%", "%%")
    return f"{name}/slurm/%A_%a.out" if "\n" not in name else "/dev/null"  # then the script itself opens the file


def one_line(value: str) -> str:
    """Free text for a #SBATCH line, which cannot have a line break."""
    return " ".join(value.split())


def share(cluster: Cluster, trials: int) -> int:
    """How many of `trials` trials one element runs: at most cluster.trials_per_node, spread evenly."""
    elements = math.ceil(trials / cluster.trials_per_node)
    return math.ceil(trials / elements)


def findings(cluster: Cluster) -> list[Finding]:
    """Everything under `cluster` that cannot be written into a script."""
    probe = ArrayRequest(sweep=Path("/"), name="", trials=[0], nodes=1, ranks_per_node=1, cluster=cluster)
    problems = []
    for written in (lambda: parameters(probe), lambda: exports(cluster.variables)):
        try:
            written()
        except Refused as refused:
            problems += refused.findings
    return problems


def exports(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, value) of each variable, sorted. Raises Refused if a name is not a valid shell variable."""
    wrong = [name for name in environment if not _NAME.fullmatch(str(name))]
    if wrong:
        why = "is no name of a variable"
        raise Refused([Finding(f"cluster.environment.{name}", "", why, "letters, digits and _ only") for name in wrong])
    return sorted(environment.items())


def _submitit_names() -> set[str]:
    from submitit.slurm.slurm import _get_default_parameters

    return set(_get_default_parameters()) - {
        "additional_parameters",
        "map_count",
        "setup",
        "teardown",
        "srun_args",
        "use_srun",
    }
