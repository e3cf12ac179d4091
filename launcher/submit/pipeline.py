"""Conversion, data, sweep and report as Slurm jobs, each of which waits for the one before to be done.

The base model comes first: its tokenizer counts the lengths of the pairs. All trials are checked now, except for files
that an earlier stage will make. If a stage fails, Slurm cancels the stages after it.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn

from launcher.check.cluster_limits import Site
from launcher.compose.hydra_state import HydraLauncher
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding, Refused
from launcher.slurm import client, script
from launcher.submit import prepare, stage_shape, stages, to_slurm
from launcher.submit.compose_only import refuse_without_slurm
from launcher.submit.stages import Stage
from launcher.sweep.folder import Sweep
from launcher.trial_config.cluster import Cluster


@dataclass(frozen=True)
class Sources:
    """The sources of data and base model, if they do not follow from their names."""

    pairs: str | None = None
    checkpoint: str | None = None


def stages_before(trials: Sequence[PlannedTrial], sources: Sources) -> list[Stage]:
    """The stages that make the files that the trials read, each once, including those that are already done."""
    by_output: dict[Path, Stage] = {}
    findings: dict[Finding, None] = {}
    for trial in trials:
        try:
            model = stages.conversion(trial.config, sources.checkpoint)
            by_output.setdefault(model.makes, model)
        except Refused as refused:
            findings.update(dict.fromkeys(refused.findings))
    expected = [stage.makes for stage in by_output.values() if not stage.there]
    # The longest first: trials that share data get data for the longest of them.
    for trial in sorted(trials, key=lambda trial: -trial.config.longest_pair):
        data = stages.data(trial.config, sources.pairs, expected)
        if data is not None:
            by_output.setdefault(data.makes, data)
    findings.update({stage.lacks: None for stage in by_output.values() if stage.lacks and not stage.there})
    named = [stage.makes for stage in by_output.values() if stage.name == "convert_checkpoint" and not stage.there]
    if sources.checkpoint and len(named) > 1:
        why = f"these trials need {len(named)} base models that do not exist yet"
        findings[Finding("--checkpoint", sources.checkpoint, why, "convert them one by one first")] = None
    if findings:
        raise Refused(findings)
    return list(by_output.values())


def submit(launcher: HydraLauncher, job_overrides: Sequence[Sequence[str]], sources: Sources) -> list[JobReturn]:
    """Do what `python -m launcher pipeline` does with the trials.

    If it raises, what was submitted is cancelled: Refused, SubmissionFailed if an sbatch did not answer.
    """
    configs = prepare.composed(launcher, job_overrides)
    for trial in configs:
        refuse_without_slurm(trial.config)
    before = stages_before(configs, sources)
    to_run = [stage for stage in before if not stage.there]
    site = Site()
    check, warn = to_slurm.checks(launcher, site)
    memory = {stage.name: stage.mem_gb for stage in sorted(to_run, key=lambda stage: stage.mem_gb)}
    memory["report"] = stages.REPORT_GB

    def with_stages(trials: Sequence[PlannedTrial]) -> list[Finding]:
        return list(dict.fromkeys([*check(trials), *stage_shape.findings(site, trials[0].config, memory)]))

    prepare.refuse(launcher, configs, with_stages, warn, frozenset[Path]().union(*(stage.files for stage in to_run)))
    sweep, trials = prepare.written(launcher, configs)
    for stage in before:
        if stage.there:
            print(f"{stage.name}: {stage.makes} exists already ({stage.there}), skipped", flush=True)
    chain = Chain(sweep, configs[0].config.cluster, site)
    try:
        for stage in to_run:
            chain.add(stage)
        by_number = {trial.number: planned.config for trial, planned in zip(trials, configs, strict=True)}
        requests = list(to_slurm.arrays(sweep, by_number, site, chain.last))
        to_slurm.submit(sweep, requests)
        ids = [int(job.id) for job in sweep.submitted() if job.kind == "slurm"]
        evaluations = [int(job.id) for job in sweep.submitted() if job.kind == "evaluation"]
        print(to_slurm.submitted(sweep, requests, configs[0].config), flush=True)
        chain.last = ids
        chain.report(evaluations)
    except BaseException:
        chain.cancel()
        raise
    if configs[0].config.wait:
        from launcher.submit.wait import wait_for

        return wait_for(sweep, trials)
    return [to_slurm.unfinished(trial) for trial in trials]


class Chain:
    """Jobs that depend on one another in a row, submitted from scripts in the sweep's folder."""

    def __init__(self, sweep: Sweep, cluster: Cluster, site: Site) -> None:
        self.sweep, self.cluster = sweep, stage_shape.within_time(site, cluster)
        self.memory = site.cluster.memory_is_allocated
        self.last: Sequence[int] = ()
        """The jobs that the next one depends on."""
        (sweep.folder / "slurm").mkdir(exist_ok=True)

    def add(self, stage: Stage) -> None:
        """Submit a stage before the sweep."""
        name = self._free_name(stage.name)
        made = stages.text(
            stage, self.cluster, name=self._job(name), output=self._output(name), after=self.last, memory=self.memory
        )
        self._submit(name, made, f"makes {stage.makes}")

    def report(self, evaluations: Sequence[int]) -> None:
        """Submit the stage behind the sweep, once its evaluations have ended, however they did."""
        cluster = self.cluster
        if evaluations:
            ended = f"afterany:{':'.join(map(str, evaluations))}"
            asked = ",".join(filter(None, [str(cluster.sbatch.get("dependency") or ""), ended]))
            cluster = cluster.model_copy(update={"sbatch": {**cluster.sbatch, "dependency": asked}})
        made = stages.report_text(
            self.sweep.folder, cluster, name=self._job("report"), output=self._output("report"), after=self.last,
            memory=self.memory,
        )  # fmt: skip
        self._submit("report", made, "compares the trials once all are done")

    def cancel(self) -> None:
        """Cancel all jobs of the sweep, since the chain cannot be completed. What still may run is told on stderr.

        A job whose sbatch wrote no id may be in the queue all the same. It is cancelled by its name, which has the
        sweep's id in it.
        """
        ids: dict[str, list[str]] = {}
        nameless: dict[str, None] = {}
        for job in self.sweep.submitted():
            if job.id:
                ids.setdefault(job.cluster if job.cluster_named else "", []).append(job.id)
            elif client.can_look_for(name := script.one_line(job.name)):
                nameless[name] = None
        asked = self.cluster.other_clusters or os.environ.get("SBATCH_CLUSTERS", "")
        by_id = (functools.partial(client.scancel, jobs, cluster=cluster) for cluster, jobs in ids.items())
        by_name = (
            functools.partial(client.scancel_name, name, user=self.sweep.data["user"], clusters=asked)
            for name in nameless
        )
        for call in (*by_id, *by_name):
            try:
                call()
            except client.SlurmError as error:
                print(f"note: not cancelled: {error}", file=sys.stderr)

    def _submit(self, name: str, text: str, what: str) -> None:
        path = self.sweep.folder / "slurm" / f"{name}.sbatch"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o700)
        job_name = script.one_line(self._job(name))
        self.sweep.record_job("stage", "", [], script=path.name, name=job_name)  # sbatch itself writes the id
        try:
            job = client.submit(path, receipt=self.sweep.receipt(path.name))
        except client.SlurmError as error:
            if error.refused:
                remedy = "correct the keys of `cluster` that it names"
                raise Refused([Finding(str(path), "", f"sbatch refused it ({error})", remedy)]) from error
            look = f"squeue --me --name={shlex.quote(job_name)}"
            raise to_slurm.SubmissionFailed(
                f"{error}; the job {job_name} may have been submitted all the same and is cancelled by its name:"
                f" `{look}` has to list none before you call this again"
            ) from error
        behind = f", once {', '.join(str(earlier) for earlier in self.last)} is done" if self.last else ""
        print(f"{name}: job {job}{behind}; {what}", flush=True)
        self.last = [job]

    def _free_name(self, name: str) -> str:
        """A name that is not taken: a sweep over models has several stages of one kind."""
        taken = len(list((self.sweep.folder / "slurm").glob(f"{name}*.sbatch")))
        return f"{name}_{taken}" if taken else name

    def _job(self, name: str) -> str:
        return f"{self.sweep.experiment['name']}-{name}-{self.sweep.data['id']}"

    def _output(self, name: str) -> str:
        return script.output(self.sweep.folder).replace("%A_%a", f"{name}-%j")


def refuse_here() -> None:
    """Raises Refused on a machine that does not belong to a Slurm cluster."""
    if not client.available() or not client.configured():
        why = "needs Slurm, which is not here (no sbatch on the PATH, or no cluster configured)"
        remedy = f"on this machine, {shlex.quote('make sweep')} does all of it: data, model, sweep, comparison"
        raise Refused([Finding("pipeline", "", why, remedy)])
