"""What a trial's batch script calls before and after srun, on the node it runs on, outside of any container.

    python -m launcher.job.begin_end begin TRIAL [beside]           exit code 0: start the ranks
    python -m launcher.job.begin_end end TRIAL CODE SCRIPT [WORDS]  the script's own exit code

`begin` takes the trial over, records how the previous start ended if that start could not, and gives up a trial that
was started too often. `end` finds out how this start ended and continues the trial: it requeues the job, or submits a
new one where a requeue is not allowed. The rules are in launcher.job.restart_rule, the history in
launcher.sweep.starts. Standard library only.

Trials that share a job (cluster.trials_per_node) each `begin` with `beside`, and `end` without a script. After the last
one has ended, one call continues those that are not done:

    python -m launcher.job.begin_end again TRIAL ... -- SCRIPT [WORDS]
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.job import slurm_job
from launcher.job.how_it_ended import cluster_of, ending_of, last_step
from launcher.job.restart_rule import Decision, Ending, decide
from launcher.job.slurm_job import JobRecord, OwnJob
from launcher.sweep import bad_nodes, logs, result_file
from launcher.sweep import starts as history
from launcher.sweep.starts import GAVE_UP, SAID, Start

_BY_SLURM: dict[str, tuple[history.Kind, str]] = {
    "NODE_FAIL": ("node", "a node failed"),
    "PREEMPTED": ("preempted", "preempted, and its grace time was over"),
}
#: Further exit codes of `begin`, besides 0 and 1.
DONE, REQUEUED = 3, 75
_LATER = "is to go on"  # the decision, until it is carried out


def main(words: Sequence[str]) -> int:
    # A requeue ends the calling script; this process then has KillWait (30 s) to finish its work.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    what, trial = words[0], Path(words[1])
    if what == "begin":
        return begin(trial, OwnJob.here(), beside="beside" in words[2:])
    if what == "again":
        place = words.index("--")
        return again([Path(word) for word in words[1:place]], OwnJob.here(), words[place + 1 :])
    return end(trial, OwnJob.here(), int(words[2]), words[3:])


# -- before ------------------------------------------------------------------------------------------------------------


def begin(trial: Path, job: OwnJob, beside: bool = False) -> int:
    """Take the trial over.

    Returns 0: start the ranks; REQUEUED: the job is back in the queue; else the exit code of a script that gives up.
    With `beside`, the job may have been started for its other trials only: returns DONE if this trial is done, 1 if it
    gave up before, or if a retry has submitted it in another job.
    """
    starts = history.read(trial)
    cluster = cluster_of(trial)
    chain = [start for start in starts if start.chain == job.chain]
    step = last_step(trial)
    decision = Decision(True, "")
    if chain and chain[-1].kind is None and chain[-1].name != job.start_name:
        chain[-1], decision = _how_last_start_ended(trial, chain, step, cluster, job)
        if not decision.go_on:
            result_file.finish_without_evaluation(trial, decision.why)
    if beside and (trial / "result.json").exists():
        return DONE
    if beside and chain and chain[-1].gave_up:
        print(f"trial {trial.name} {chain[-1].then}", flush=True)
        return 1
    if beside and chain and starts[-1].chain != job.chain:
        print(f"trial {trial.name} has been submitted again since, and goes on there: {starts[-1].name}", flush=True)
        return 1
    start = Start(name=job.start_name, chain=job.chain, nodes=job.nodes, began=round(time.time(), 3), first_step=step)
    print(
        logs.MARK.format(start=job.start_name), f"trial {trial.name} on {job.nodes}", _earlier_ends(chain), flush=True
    )
    if (trial / "result.json").exists():
        history.take_over(trial, job.start_name)
        history.began(trial, start)
        return 0  # the ranks see the result too, and exit
    if not decision.go_on:
        print(f"gives up: {decision.why}", flush=True)
        return 1
    if _requeued_off_bad_nodes(trial, job, cluster):
        return REQUEUED
    history.take_over(trial, job.start_name)
    history.began(trial, start)
    return 0


def _how_last_start_ended(
    trial: Path, chain: Sequence[Start], step: int, cluster: Mapping[str, int], job: OwnJob
) -> tuple[Start, Decision]:
    """Find and record how the previous start ended: its script could not (Slurm requeued it, or its node was lost)."""
    last = chain[-1]
    kind, why = _BY_SLURM.get(slurm_job.final_state(job.element, last.name), ("requeued", SAID["requeued"]))
    decision = decide(chain[:-1], last, Ending(kind, why, step), cluster, {})
    then = "requeued by Slurm" if decision.go_on else f"{GAVE_UP}{decision.why}"
    history.ended(trial, last.name, kind, why, step, then)
    return replace(last, kind=kind, why=why, last_step=step, then=then), decision


def _requeued_off_bad_nodes(trial: Path, job: OwnJob, cluster: Mapping[str, int]) -> bool:
    """Requeue this job if another trial has found one of its nodes to be bad in the meantime. True if that was done."""
    blamed = {node.name: node.why for node in bad_nodes.read(trial.parent, job.cluster)}
    if not blamed or not cluster.get("requeue", True):
        return False
    here = [node for node in slurm_job.hostnames(job.nodes) if node in blamed]
    if not here:
        return False
    record = slurm_job.query(job.element)
    away = _avoidable(job, record, list(blamed))
    if not set(here) & set(away) or not slurm_job.requeue(job.element):
        return False
    slurm_job.exclude_nodes(job.element, record, away)
    print(f"does not start on {', '.join(here)}: {blamed[here[0]]}; requeued", flush=True)
    return True


def _earlier_ends(chain: Sequence[Start]) -> str:
    """`after: preempted, a node failed (twice)`"""
    ends = [SAID[start.kind] for start in chain if start.kind]
    counted = [f"{text} ({ends.count(text)} times)" if ends.count(text) > 1 else text for text in dict.fromkeys(ends)]
    return f"after: {', '.join(counted)}" if counted else ""


# -- after -------------------------------------------------------------------------------------------------------------


def end(trial: Path, job: OwnJob, code: int, script: Sequence[str] = ()) -> int:
    """Decide whether the trial continues, and continue it if a `script` (with its arguments) is given.

    Returns the exit code for the script.
    """
    starts = history.read(trial)
    now = next((start for start in starts if start.name == job.start_name), None)
    if now is None:  # the disk was full when it began
        now = Start(
            name=job.start_name, chain=job.chain, nodes=job.nodes, began=time.time(), first_step=last_step(trial)
        )
    if (trial / "result.json").exists():
        history.ended(trial, job.start_name, "done", "", last_step(trial))
        return 0
    if history.owner(trial) != job.start_name:
        print(f"{SAID['replaced']}: {history.owner(trial)}", flush=True)
        history.ended(trial, job.start_name, "replaced", SAID["replaced"], last_step(trial))
        return code or 1
    record = slurm_job.query(job.element)
    if record.restarts > job.restarts:
        return code or 1  # Slurm has requeued it; the next start asks the accounting why
    if not record.script_decides:
        print(f"Slurm says {record.state or 'nothing'} ({record.reason}): not for this script to go on", flush=True)
        history.ended(trial, job.start_name, "cancelled", "cancelled", last_step(trial))
        return code or 1
    ending = ending_of(trial, job, code, record)
    chain = [start for start in starts if start.chain == job.chain and start.kind]
    bad = bad_nodes.read(trial.parent, job.cluster)
    decision = decide(chain, now, ending, cluster_of(trial), {node.name: node.why for node in bad})
    for node in bad:
        if node.name in decision.cleared:
            bad_nodes.remove(trial.parent, node)
    failed = ending.kind in ("failure", "refused") or not decision.go_on
    if failed and result_file.finish_without_evaluation(trial, ending.why):
        history.ended(trial, job.start_name, "done", "", ending.step)
        return 0
    if not decision.go_on:
        print(f"gives up: {decision.why}", flush=True)
        history.ended(trial, job.start_name, ending.kind, ending.why, ending.step, then=f"{GAVE_UP}{decision.why}")
        return code or 1
    blamed = _avoidable(job, record, decision.exclude)
    for name in blamed:
        bad_nodes.add(trial.parent, job.cluster, name, ending.why, int(trial.name))
    print(f"{ending.why}; goes on from step {ending.step}", flush=True)
    history.ended(trial, job.start_name, ending.kind, ending.why, ending.step, _LATER, "".join(blamed))
    return _go_on([trial], job, record, script) if script else 0


def again(trials: Sequence[Path], job: OwnJob, script: Sequence[str]) -> int:
    """Continue those trials of a job that are to continue. Returns the script's exit code: 1 if one was given up."""
    left = [trial for trial in trials if not (trial / "result.json").exists()]
    waiting = []
    for trial in left:
        now = next((start for start in history.read(trial) if start.name == job.start_name), None)
        waiting += [trial] if now and now.then == _LATER else []
    if waiting:
        record = slurm_job.query(job.element)
        if record.restarts == job.restarts and record.script_decides:
            return _go_on(waiting, job, record, script)
    return 1 if left else 0


def _go_on(trials: Sequence[Path], job: OwnJob, record: JobRecord, script: Sequence[str]) -> int:
    """Requeue the job or submit it anew. This comes last: a requeue ends the script."""
    sweep = trials[0].parent
    bad = [node.name for node in bad_nodes.read(sweep, job.cluster)]
    away = _avoidable(job, record, bad)

    def noted(then: str) -> None:
        for trial in trials:
            history.goes_on(trial, job.start_name, then)

    if cluster_of(trials[0]).get("requeue", True):
        noted("requeued")
        if slurm_job.requeue(job.element):
            if away:
                slurm_job.exclude_nodes(job.element, record, away)
            return 0
    later = slurm_job.continuation(sweep, [int(trial.name) for trial in trials], job, record, script, away)
    noted(f"goes on as job {later}")
    print(f"goes on as job {later}", flush=True)
    return 0


def _avoidable(job: OwnJob, record: JobRecord, nodes: Sequence[str]) -> list[str]:
    """Those of `nodes` that the job can do without: it does not ask for them by name, and enough others are left."""
    if not nodes:
        return []  # the usual case: run no Slurm command, because there is little time
    needed = len(slurm_job.hostnames(job.nodes))
    required = set(slurm_job.hostnames(record.required))
    partition = record.fields.get("Partition", "").split(",")[0]
    chosen: list[str] = []
    for node in dict.fromkeys(nodes):
        if node not in required and slurm_job.room_without(partition, [*chosen, node], needed):
            chosen.append(node)
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
