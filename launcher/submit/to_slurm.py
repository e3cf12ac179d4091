"""The Hydra launcher `preference_slurm`: it checks the trials, writes the folder, submits one array, returns."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

import launcher as package
from launcher.check import cluster_limits, image, installed, preflight
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.engines import ENGINES
from launcher.findings import Finding, LauncherError, Refused
from launcher.job import slurm_job
from launcher.slurm import client, container, profile, reasons, script
from launcher.slurm.script import ArrayRequest
from launcher.submit import evaluation, node_share, prepare
from launcher.submit.prepare import Check, Warn, folder_of
from launcher.sweep import bad_nodes, kept_code
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.validate import load


class SubmissionFailed(LauncherError):
    """sbatch failed in the middle of a sweep, or it is not known whether it failed. str() is one line."""


_ROOT = str(Path(package.__file__).resolve().parents[1])  # the folder with the package `launcher`
_MAX_ARRAY_SIZE = 1001  # Slurm's default


def launch(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
    """Returns at once, unless `wait` is set or a sweeper needs values. If it raises Refused, nothing was submitted."""
    site = cluster_limits.Site()
    composed = prepare.composed(launcher, job_overrides)
    prepare.refuse(launcher, composed, *checks(launcher, site))
    sweep, trials = prepare.written(launcher, composed)
    configs = {trial.number: planned.config for trial, planned in zip(trials, composed, strict=True)}
    requests = list(arrays(sweep, configs, site))
    submit(sweep, requests)
    first = composed[0].config
    print(submitted(sweep, requests, first), flush=True)
    if first.wait or needs_values(launcher):
        from launcher.submit.wait import wait_for

        return wait_for(sweep, trials)
    return [unfinished(trial) for trial in trials]


def arrays(
    sweep: Sweep,
    configs: Mapping[int, TrialConfig],
    site: cluster_limits.Site | None,
    after: Sequence[int] = (),
    code: int | None = None,
) -> Iterator[ArrayRequest]:
    """The arrays of a sweep: one, unless its trials have different requests to Slurm, or there are too many.

    `configs` are those of the trials to submit, by number. `code` is the copy of the launcher's code that they run;
    None: for each trial the one that it ran last. Without a `site` (to render a script without Slurm), Slurm's defaults
    are assumed.
    """
    max_array_size = site.cluster.max_array_size if site else _MAX_ARRAY_SIZE

    def code_of(trial: int) -> int:
        return code if code is not None else sweep.code_of(trial) or 0

    def shape(number: int) -> str:
        return f"{slurm_shape(configs[number])} {code_of(number)}"

    for _, alike in itertools.groupby(sorted(configs, key=shape), key=shape):
        numbers = sorted(alike)
        most = max_array_size * script.share(configs[numbers[0]].cluster, len(numbers))
        for first in range(0, len(numbers), most):
            chunk = numbers[first : first + most]
            yield _request(sweep, chunk, configs[chunk[0]], site, after, code_of(chunk[0]))


def slurm_shape(config: TrialConfig) -> str:
    """What the trials of one array must have in common: `cluster`, nodes and ranks, what the evaluation asks for."""
    asked = config.evaluation.slurm if config.evaluated_after_training else None
    return repr([config.cluster, config.nodes, config.ranks_per_node, asked])


def _request(
    sweep: Sweep,
    trials: list[int],
    config: TrialConfig,
    site: cluster_limits.Site | None,
    after: Sequence[int],
    code: int,
) -> ArrayRequest:
    share = script.share(config.cluster, len(trials))
    cluster = node_share.with_request(site, config, share) if site else config.cluster
    avoided = _nodes_to_avoid(sweep, cluster.partition, config.nodes)
    if avoided:
        exclude = ",".join([*filter(None, [cluster.exclude]), *avoided])
        cluster = cluster.model_copy(update={"exclude": exclude})
    scripts = kept_code.place(sweep.folder, code)
    own = folders_of_own_engine(config)
    inside = container.of_trials(config, sweep.folder, str(scripts / "in_container.sh"), own)
    if inside.runtime:
        Path(config.paths.cache).mkdir(parents=True, exist_ok=True)  # what is mounted has to be there
    return ArrayRequest(
        sweep=sweep.folder,
        name=f"{config.experiment.name}-{sweep.data['id']}",
        trials=trials,
        nodes=config.nodes,
        ranks_per_node=config.ranks_per_node,
        cluster=cluster,
        share=share,
        container=inside,
        pythonpath=":".join([kept_code.pythonpath(sweep.folder, code), *own]),
        scripts=scripts,
        code=code,
        cluster_name=cluster_limits.cluster_name(site, config.cluster) if site else "",
        after=after,
    )


def folders_of_own_engine(config: TrialConfig) -> list[str]:
    """The folder of the clone if the config names an engine that is not the launcher's: it may be there."""
    return [] if config.engine in ENGINES else [_ROOT]


def _nodes_to_avoid(sweep: Sweep, partition: str | None, needed: int) -> list[str]:
    """The nodes that failed trials of this sweep on this cluster, as far as enough other nodes are left.

    For a new sweep there are none, and Slurm is not asked.
    """
    if not bad_nodes.read(sweep.folder):
        return []
    here = client.cluster()
    name = partition or (here.default_partition.name if here.default_partition else "")
    avoided: list[str] = []
    for node in bad_nodes.read(sweep.folder, here.name):
        if slurm_job.room_without(name.split(",")[0], [*avoided, node.name], needed):
            avoided.append(node.name)
    return avoided


def submit(sweep: Sweep, requests: Sequence[ArrayRequest]) -> None:
    """Write each array's script into the sweep's folder and hand it to sbatch.

    sbatch writes the array's id directly into that folder. If this process dies, even by kill -9, either no sbatch was
    started and there is no array, or there is one and its id is recorded. Raises Refused if sbatch accepts none of
    them, SubmissionFailed if it may have accepted some. Behind each array comes that of its trials' evaluation.
    """
    arrays: list[tuple[ArrayRequest, int]] = []
    folder = sweep.folder / "slurm"
    folder.mkdir(exist_ok=True)
    taken = len(list(folder.glob("[0-9]*.sbatch")))
    for number, request in enumerate(requests, taken):
        path = folder / f"{number}.sbatch"
        path.write_text(script.text(request), encoding="utf-8")
        path.chmod(0o700)
        sweep.record_job(
            "slurm", "", request.trials, script=path.name, name=request.name, share=request.share, code=request.code,
            cluster=request.cluster_name,
        )  # fmt: skip
        for variable, value in profile.overriding(path.read_text(encoding="utf-8")).items():
            print(f"note: {variable}={value} in your environment is ignored: the script decides", file=sys.stderr)
        try:
            arrays.append((request, client.submit(path, receipt=sweep.receipt(path.name))))
        except client.SlurmError as error:
            if number == taken and error.refused:
                key, remedy = reasons.refused(error.message)
                why = f"sbatch refused {path.name} ({error.message or f'exit code {error.code}'})"
                raise Refused([Finding(key, "", why, remedy)]) from error
            missing = sum(len(request.trials) for request in requests[number - taken :])
            raise SubmissionFailed(
                f"{error}; {missing} of {len(sweep.trials)} trials are not known to be submitted: see"
                f" `python -m launcher status {shlex.quote(os.path.relpath(sweep.folder))}`"
            ) from error
    for request, array in arrays:
        if load(sweep.folder / str(request.trials[0])).evaluated_after_training:
            evaluation.submit(
                sweep, request.trials, share=request.share, behind=array, cluster_name=request.cluster_name
            )


def checks(launcher: HydraLauncher, site: cluster_limits.Site) -> tuple[Check, Warn]:
    """(check, warn) for a cluster: what it would refuse or never start, and what it may not have room for."""

    def findings(configs: Sequence[PlannedTrial]) -> list[Finding]:
        return [*_check(site, configs, folder_of(launcher)), *_folder(launcher)]

    def warnings(configs: Sequence[PlannedTrial], folder: Path) -> list[Finding]:
        unsure = dict.fromkeys(it for trial in configs for of in (installed, image) for it in of.warnings(trial.config))
        return [*cluster_limits.warnings(site, configs, folder), *unsure]

    return findings, warnings


def _check(site: cluster_limits.Site, trials: Sequence[PlannedTrial], folder: Path) -> list[Finding]:
    unique: dict[Finding, None] = {}
    seen = set()
    for trial in trials:
        unique.update(dict.fromkeys(installed.findings(trial.config)))
        shape = slurm_shape(trial.config)
        if shape not in seen:
            seen.add(shape)
            unfit = cluster_limits.findings(site, trial.config, len(trials))
            unfit += script.findings(trial.config.cluster)
            unfit += container.findings(trial.config, folder) or image.findings(trial.config)
            if not unfit and trial.config.evaluated_after_training:
                unfit = evaluation.findings(site, trial.config, len(trials))
            unique.update(dict.fromkeys(unfit))
    return list(unique)


def _folder(launcher: HydraLauncher) -> list[Finding]:
    """sbatch(1), "filename pattern": a backslash turns all patterns off and is itself dropped."""
    folder = str(folder_of(launcher))
    if "\\" not in folder:
        return []
    why = "has a backslash, which Slurm drops from the names of output files"
    return [Finding("hydra.sweep.dir", folder, why, "choose a folder without one (paths.runs, experiment.name)")]


def submitted(sweep: Sweep, requests: Sequence[ArrayRequest], config: TrialConfig) -> str:
    ids = [job.id for job in sweep.submitted() if job.has_array_id][-len(requests) :]
    evaluations = [job.id for job in sweep.submitted() if job.kind == "evaluation"][-len(requests) :]
    trials = sum(len(request.trials) for request in requests)
    nodes, ranks = config.nodes, config.ranks_per_node
    shape = f"{nodes} node{'s' * (nodes > 1)} x {ranks} rank{'s' * (ranks > 1)}"
    if requests[0].share > 1:
        shape += f", {requests[0].share} trials on a node"
    many = "s" if len(ids) > 1 else ""
    folder = shlex.quote(os.path.relpath(sweep.folder))
    return "\n".join(
        (
            f"array{many} {', '.join(ids)}: {trials} trial{'s' * (trials > 1)} x {shape}, job {requests[0].name}",
            f"  folder     {sweep.folder}",
            preflight.summary(config, trials),
            *(
                [f"  evaluated  by array {', '.join(evaluations)}, each trial once it has trained"]
                if evaluations
                else []
            ),
            f"  status     python -m launcher status {folder}",
            f"  watch      python -m launcher watch {folder}",
            f"  cancel     python -m launcher cancel {folder}",
        )
    )


def needs_values(launcher: HydraLauncher) -> bool:
    """Whether the sweeper chooses its next trials by the results of these; the launcher's and Hydra's own do not."""
    target = str(launcher.config.hydra.sweeper._target_)
    return not target.startswith(("hydra_plugins.preference_launcher.", "hydra._internal.core_plugins."))


def unfinished(trial: Trial) -> JobReturn:
    """A JobReturn without a result: its status is unknown, and asking for its value raises."""
    answer = JobReturn(overrides=list(trial.overrides))
    answer.status = JobStatus.UNKNOWN
    return answer


__all__ = ["arrays", "launch", "submit"]
