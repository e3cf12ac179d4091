"""The scripts of the stages as they would be submitted, as text, for `python -m launcher render`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.check import preflight
from launcher.check.cluster_limits import Site
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding, Refused
from launcher.slurm import client, container, script, template
from launcher.slurm.script import ArrayRequest
from launcher.submit import node_share, prepare, stages, to_slurm
from launcher.submit.compose_only import refuse_without_slurm
from launcher.submit.pipeline import Sources
from launcher.sweep.folder import Sweep
from launcher.trial_config.cluster import Cluster

STAGES = ("prepare_data", "convert_checkpoint", "dpo", "sweep")


def stage_text(
    stage: str, launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]], line: Sequence[str], sources: Sources
) -> list[str]:
    """The script of a stage, or several if a sweep becomes several arrays.

    If the model or data do not exist yet, stderr says so. Other problems raise Refused, as at a submission.
    `line` are the arguments of launcher/main.py.
    """
    trials = prepare.composed(launcher, job_overrides)
    for trial in trials:
        refuse_without_slurm(trial.config)
    if stage in ("sweep", "dpo") and (costs := preflight.cost_line(trials[0].config, len(trials))):
        print(f"note: {costs}", file=sys.stderr)
    if stage == "sweep":
        return _sweep(launcher, trials)
    if len(trials) > 1:
        why = "is a script of one trial" if stage == "dpo" else "is made for one trial's data and model"
        raise Refused([Finding("render", stage, f"{why}, but there are {len(trials)}", "give one value for each key")])
    if stage == "dpo":
        return [_dpo(launcher, trials[0], line, sources)]
    made = stages.data if stage == "prepare_data" else stages.conversion
    source = sources.pairs if stage == "prepare_data" else sources.checkpoint
    rendered = made(trials[0].config, source)
    if rendered is None:
        why = "does not name files of prepare_data.py: train.jsonl, validation.jsonl, test.jsonl in one folder"
        raise Refused([Finding("model.data.data_prefix", "", why, "choose a set: data=sample")])
    if rendered.lacks:
        raise Refused([rendered.lacks])
    return [stages.text(rendered, trials[0].config.cluster, name=stage, output="%x-%j.out")]


def _sweep(launcher: HydraLauncher, trials: Sequence[PlannedTrial]) -> list[str]:
    site = _checked(launcher, trials)
    pairs = [(trial.overrides, trial.config.plain) for trial in trials]
    experiment = prepare.experiment_of(trials[0])
    sweep = Sweep.planned(prepare.folder_of(launcher), command=[], experiment=experiment, trials=pairs)
    configs = {number: trial.config for number, trial in enumerate(trials)}
    return [script.text(request) for request in to_slurm.arrays(sweep, configs, site)]


def _dpo(launcher: HydraLauncher, trial: PlannedTrial, line: Sequence[str], sources: Sources) -> str:
    config = trial.config
    data = stages.data(config, sources.pairs)
    prepared = data is not None and not data.there and not data.lacks
    site = _checked(launcher, [trial], data.files if data and prepared else frozenset())
    runs = Path(config.paths.runs)
    folder = f'{shlex.quote(str(runs))}"/dpo-${{first%_*}}"'
    in_container = template.Words(f"{folder}/code/0/in_container.sh")
    inside = container.of_trials(config, runs, in_container, to_slurm.folders_of_own_engine(config))
    request = ArrayRequest(
        sweep=runs, name=config.experiment.name, trials=[0], nodes=config.nodes, ranks_per_node=config.ranks_per_node,
        cluster=node_share.with_request(site, config, 1) if site else config.cluster, container=inside,
    )  # fmt: skip
    return dpo_text(request, Path.cwd(), data if prepared else None, line)


def dpo_text(request: ArrayRequest, folder: Path, data: stages.Stage | None, line: Sequence[str]) -> str:
    """The script of one trial that makes its `data` first and writes its own folder, below `request.sweep`.

    `line` are the arguments of launcher/main.py; relative paths among them start in `folder`.
    """
    cluster, inside = request.cluster, request.container
    lines = [line for line in script.directives(request) if not line.startswith("#SBATCH --output=")]
    main = shlex.quote(str(stages.root() / "launcher" / "main.py"))
    last = ["hydra/launcher=preference_write", "hydra.sweep.dir=${oc.env:SWEEP}"]
    return template.fill(
        "dpo",
        [*lines, "#SBATCH --output=%x-%A_%a.out"],
        {
            **stages.surroundings(cluster, inside),
            "srun_args": [*inside.srun_args, *cluster.srun_args],
            "sweep": template.Words(f'{shlex.quote(str(request.sweep))}"/dpo-${{first%_*}}"'),
            "trials": request.trials,
            **script.ranks(request),
            **(_preparation(data, cluster) if data else {}),
            "write_sweep": [template.Words(f"{stages.light_python(cluster)} {main}"), *line, *last],
        },
        first=[f"cd {shlex.quote(str(folder))} || exit", "first=${LAUNCHER_CHAIN:-$SLURM_ARRAY_JOB_ID}"],
        setup=cluster.setup,
        teardown=cluster.teardown,
    )


def _preparation(data: stages.Stage, cluster: Cluster) -> dict[str, template.Value]:
    """The assignments for data that the job makes first."""
    options = [*stages.inside(data, cluster).srun_args, *cluster.srun_args]
    return {
        "data_proof": data.proof,
        "makes": data.made_in,
        "prepare_data": [*options, *stages.command(data, cluster)],
    }


def _checked(
    launcher: HydraLauncher, trials: Sequence[PlannedTrial], expected: frozenset[Path] = frozenset()
) -> Site | None:
    """Refuse what a submission would refuse, except for files that do not exist yet: stderr names them.

    Returns the cluster; None if there is none here, so that nothing is checked against one. Raises Refused.
    """
    missing = _missing(trials) - expected
    if missing:
        otherwise = preflight.findings(trials, None, expected | missing)
        for finding in preflight.findings(trials, None, expected):
            if finding not in otherwise:
                print(f"does not exist yet: {finding}", file=sys.stderr)
    if not client.available() or not client.configured():
        print("note: there is no Slurm here, so nothing is checked against a cluster", file=sys.stderr)
        prepare.refuse(launcher, trials, expected=expected | missing)
        return None
    site = Site()
    prepare.refuse(launcher, trials, *to_slurm.checks(launcher, site), expected | missing)
    return site


def _missing(trials: Sequence[PlannedTrial]) -> frozenset[Path]:
    """Models and data files of trials that do not exist."""
    configs = [trial.config for trial in trials]
    files = {path for config in configs for path in config.data_files.values()}
    return frozenset(path for path in {*files, *(config.base_model for config in configs)} if not path.exists())
