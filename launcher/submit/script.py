"""The text of a sweep's sbatch script: a request in, text out. Printing it is the dry run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.findings import Finding, Refused

#: Keys of `cluster` that are sbatch's own options, under submitit's names for them.
PLAIN = (
    "partition", "account", "qos", "constraint", "exclude", "nodelist", "mail_type", "mail_user", "comment",
    "cpus_per_task", "gpus_per_node", "exclusive",
)  # fmt: skip
#: Options that follow from the trial or that the launcher needs for itself.
OWN = ("nodes", "ntasks_per_node", "array", "output", "error", "open-mode", "job_name", "signal", "requeue", "parsable")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ArrayRequest:
    """All that one array of trials is asked with."""

    sweep: Path
    name: str
    """Job name."""
    trials: Sequence[int]
    """The number of the trial that each array element runs. MaxArraySize caps the index, so each array starts at 0."""
    nodes: int
    ranks_per_node: int
    cluster: Mapping[str, Any]
    """The trials' `cluster` config."""
    python: str
    """Shell words that run Python in the job."""
    srun_args: Sequence[str] = ()
    pythonpath: str = ""
    """What has to be on PYTHONPATH for `launcher` to be found in the job."""
    environment: Mapping[str, str] = field(default_factory=dict)


def text(request: ArrayRequest) -> str:
    """The script. Raises Refused where an option cannot be written into one."""
    import jinja2

    cluster = request.cluster
    loader = jinja2.FileSystemLoader(str(templates()))
    jinja = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["quote"] = lambda value: shlex.quote(str(value))
    return jinja.get_template("sweep.sbatch.j2").render(
        nodes=request.nodes,
        ranks_per_node=request.ranks_per_node,
        trials=request.trials,
        sweep=request.sweep,
        directives=directives(request),
        environment=sorted(request.environment.items()),
        pythonpath=request.pythonpath,
        setup=cluster.get("setup") or [],
        teardown=cluster.get("teardown") or [],
        srun_args=[*request.srun_args, *(cluster.get("srun_args") or [])],
        python=request.python,
    )


def directives(request: ArrayRequest) -> list[str]:
    """The #SBATCH lines, made by submitit, so that every parameter it knows means here what it means there."""
    from submitit.slurm.slurm import _make_sbatch_string

    made = _make_sbatch_string(command="", folder=request.sweep / "slurm", **parameters(request))
    return [line for line in made.splitlines() if line.startswith("#SBATCH")]


def parameters(request: ArrayRequest) -> dict[str, Any]:
    """submitit's parameters for a request. Raises Refused with what it does not take."""
    cluster = request.cluster
    known: dict[str, Any] = {
        "job_name": one_line(request.name),
        "nodes": request.nodes,
        "ntasks_per_node": request.ranks_per_node,
        "time": cluster["time"],
        "signal_delay_s": cluster["signal_delay_s"],
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is one that no site has
        **{name: cluster.get(name) for name in PLAIN},
    }
    if cluster.get("mem_gb") is not None:
        known["mem"] = f"{float(cluster['mem_gb']):g}G"
    free: dict[str, Any] = {}
    findings = []
    for option, value in (cluster.get("sbatch") or {}).items():
        name = str(option).replace("-", "_")
        if not _NAME.fullmatch(name) or str(option).startswith("-"):
            findings.append(
                Finding(f"cluster.sbatch.{option}", "", "is no name of an option", "write it without dashes")
            )
        elif str(option) in OWN or name in OWN:
            findings.append(Finding(f"cluster.sbatch.{option}", str(value), "is set by the launcher itself", "drop it"))
        elif name in _submitit_names():
            known[name] = value
        else:
            free[str(option)] = value
    if cluster.get("reservation") is not None:
        free["reservation"] = cluster["reservation"]
    for name, value in [*known.items(), *free.items()]:
        if name != "comment" and "\n" in str(value):
            findings.append(Finding(f"cluster.{name}", str(value), "has a line break", "write it in one line"))
    if findings:
        raise Refused(findings)
    if known.get("comment") is not None:
        known["comment"] = one_line(str(known["comment"]))
    count = len(request.trials)
    free |= {
        "array": f"0-{count - 1}%{min(count, int(cluster['array_parallelism']))}",
        "output": str(request.sweep / "slurm" / "%A_%a.out"),
        "requeue": True,
    }
    given = {name: value for name, value in known.items() if value is not None or name == "wckey"}
    return {**given, "additional_parameters": free}


def one_line(value: str) -> str:
    """Free text for a #SBATCH line, which ends where the line does."""
    return " ".join(value.split())


def templates() -> Path:
    """The folder of templates: beside the package in a clone, inside it where it was installed."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "sbatch"
    return inside if inside.is_dir() else here.parent / "sbatch"


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
