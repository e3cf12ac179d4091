"""The array that evaluates a sweep's trials: a small job a trial, which starts once that trial has succeeded."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launcher.check import cluster_limits
from launcher.findings import Finding, Refused
from launcher.slurm import client, container, script, template
from launcher.slurm.script import ArrayRequest
from launcher.submit import stages
from launcher.submit.stage_shape import OF_TRIALS
from launcher.sweep.folder import Sweep
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.validate import load

NAME = "evaluate"
#: The trials of an element, as the script finds them.
_OWN_TRIALS = template.Words('"${trials[@]:SLURM_ARRAY_TASK_ID*per_element:per_element}"')


def text(sweep: Sweep, trials: Sequence[int], config: TrialConfig, *, share: int = 1, behind: int | None = None) -> str:
    """The script for `trials`, whose configs have one shape; `share` trials are evaluated one after the other.

    `behind` is the array of the trials themselves, with as many trials an element: element N starts once its element N
    has succeeded, and is cancelled if that fails. None: all start at once. Raises Refused.
    """
    in_container = str(template.folder() / "in_container.sh")
    files = [path for path in (config.evaluation.answers.prompts, config.evaluation.answers.ifeval) if path]
    read = [str(stages.root()), *(str(Path(path).expanduser().absolute().parent) for path in files)]
    within = container.of_trials(config, sweep.folder, in_container, read)
    command = [*within.prefix, template.Words(config.cluster.python_words), "-u", "-m", "launcher.evaluate"]
    return template.fill(
        NAME,
        directives(sweep, math.ceil(len(trials) / share), config, behind),
        {
            **stages.surroundings(config.cluster, within),
            "srun_args": [*within.srun_args, *config.cluster.srun_args],
            "trials": trials,
            "per_element": share,
            "command": [*command, str(sweep.folder), _OWN_TRIALS],
        },
        setup=config.cluster.setup,
        teardown=config.cluster.teardown,
    )


def directives(sweep: Sweep, elements: int, config: TrialConfig, behind: int | None) -> list[str]:
    """The #SBATCH lines: one process with its own GPUs, partition and time; else as for the trials."""
    request = ArrayRequest(
        sweep=sweep.folder,
        name=job_name(sweep, config),
        trials=range(elements),
        nodes=1,
        ranks_per_node=1,
        cluster=own_shape(config),
    )
    lines = [line for line in script.directives(request) if not line.startswith("#SBATCH --signal=")]
    if behind is not None:
        lines += [f"#SBATCH --dependency=aftercorr:{behind}", "#SBATCH --kill-on-invalid-dep=yes"]
    return lines


def job_name(sweep: Sweep, config: TrialConfig) -> str:
    return f"{config.experiment.name}-{NAME}-{sweep.data['id']}"


def own_shape(config: TrialConfig) -> Cluster:
    """The trial's `cluster` with what `evaluation.slurm` has in its place."""
    asked = config.evaluation.slurm
    named = {name: getattr(asked, name) for name in ("partition", "account", "qos", "constraint")}
    free = {key: value for key, value in config.cluster.sbatch.items() if not str(key).startswith(OF_TRIALS)}
    elsewhere = asked.partition not in (None, config.cluster.partition)  # its nodes may lack what trials ask for
    changes = {
        **({"constraint": None, "reservation": None} if elsewhere else {}),
        **{name: value for name, value in named.items() if value is not None},
        "time": asked.time,
        "gpus_per_node": asked.gpus or None,
        "cpus_per_task": asked.cpus,
        "mem_gb": asked.mem_gb,
        "exclusive": None,
        "nodelist": None,
        "trials_per_node": 1,
        "sbatch": free,
    }
    return config.cluster.model_copy(update=changes)


#: Keys of a trial's request -> those of its evaluation, which stand in their place.
_OWN_KEYS = {"cluster.gpus_per_node": "evaluation.slurm.gpus", "cluster.cpus_per_task": "evaluation.slurm.cpus"} | {
    f"cluster.{name}": f"evaluation.slurm.{name}" for name in ("partition", "account", "qos", "time", "mem_gb")
}


def findings(site: cluster_limits.Site, config: TrialConfig, trials: int) -> list[Finding]:
    """Parts of `evaluation.slurm` that this cluster would refuse, or accept and never start."""
    one_process = config.trainer.model_copy(update={"num_nodes": 1, "devices": 1})
    own = config.model_copy(update={"cluster": own_shape(config), "trainer": one_process})
    return [_of_evaluation(finding, config) for finding in cluster_limits.findings(site, own, trials)]


def _of_evaluation(finding: Finding, config: TrialConfig) -> Finding:
    """The finding about a trial of this shape, with the key and the value that the user can change."""
    key = _OWN_KEYS.get(finding.where)
    value = config.at(key) if key else None
    if key is None or value is None:  # as under `cluster`
        return replace(finding, why=f"for the evaluation: {finding.why}")
    remedy = "0 on nodes without" if key == "evaluation.slurm.gpus" else finding.remedy
    return Finding(key, str(value), finding.why, f"{remedy}; or another evaluation.slurm.partition")


def submit(
    sweep: Sweep, trials: Sequence[int], *, share: int = 1, behind: int | None = None, cluster_name: str = ""
) -> int | None:
    """Submit the evaluation of `trials`, for `text`. Returns the array's id; None where sbatch does not take it.

    That is reported on stderr and is no error: the trials run all the same, and `evaluate` can be called later.
    `cluster_name` is the cluster that gets it, if sbatch does not name another.
    """
    folder = sweep.folder / "slurm"
    path = folder / f"{NAME}{len(list(folder.glob(f'{NAME}*.sbatch')))}.sbatch"
    config = load(sweep.folder / str(trials[0]))
    try:
        path.write_text(text(sweep, trials, config, share=share, behind=behind), encoding="utf-8")
        path.chmod(0o700)
        array = client.submit(path, receipt=sweep.receipt(path.name))
    except (client.SlurmError, Refused) as error:
        if isinstance(error, client.SlurmError) and not error.refused:
            look = f"squeue --me --name={shlex.quote(job_name(sweep, config))}"
            print(f"note: it is not known whether sbatch took the evaluation ({error}): {look}", file=sys.stderr)
            return None
        later = f"python -m launcher evaluate {shlex.quote(sweep.shown)}"
        print(f"note: sbatch did not take the evaluation ({error}); once the trials are done: {later}", file=sys.stderr)
        return None
    sweep.record_job(
        "evaluation", str(array), trials, script=path.name, name=job_name(sweep, config), share=share,
        cluster=cluster_name,
    )  # fmt: skip
    return array
