"""How a start of a trial ended, from what its ranks, srun and Slurm recorded. Standard library only."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from launcher.job.node_check import UNFIT
from launcher.job.restart_rule import REPEATABLE, Ending
from launcher.job.slurm_job import JobRecord, OwnJob
from launcher.sweep import checkpoints, logs, metrics, rank_errors, starts

_EARLY_S = 70.0  # Slurm may send USR2 this much too early (sbatch(1), --signal)
_LATE = 124  # exit code of timeout(1): the batch script has killed ranks that did not exit in time
_SIGNALLED = re.compile(r"Terminated|User defined signal 2")


def ending_of(trial: Path, job: OwnJob, code: int, record: JobRecord) -> Ending:
    """How this start ended. `code` is srun's exit code, `record` what Slurm says about the job."""
    step = last_step(trial)
    stopped = _stopped(trial, job.start_name)
    if stopped is not None:
        kind: starts.Kind = (
            "preempted" if record.preempted else "asked" if _by_hand(trial, stopped, record) else "timeout"
        )
        why = {"preempted": "preempted", "timeout": "reached its time limit"}.get(kind, stopped)
        return Ending(kind, why, step)
    if record.preempted:
        return Ending("preempted", "preempted; it did not save in its grace time", step)
    if record.reason == "TimeLimit" or code == _LATE:
        return Ending("timeout", "reached its time limit; it did not save in time", step)
    batch = _batch(trial, job, record.fields.get("StdOut", ""))
    ranks = next((start for start in logs.by_start(trial) if start.name == job.start_name), None)
    failure = logs.failure(ranks, batch) if ranks else None
    reported = logs.srun_reported(batch)
    node = _node(trial, job, failure.rank if failure else None) or (reported.node if reported else "")
    error = failure.error if failure else reported.ending if reported else f"exit code {code}"
    memory = logs.out_of_memory_line(batch)
    if failure and failure.type == UNFIT:
        return Ending("node", failure.error.partition(": ")[2], step, suspect=node, unfit=True)
    if failure and failure.type in REPEATABLE and not memory:
        return Ending("refused", error, step)
    if memory:
        return Ending("failure", memory, step)
    if reported and _SIGNALLED.match(reported.ending) and not (failure and failure.type):
        # The warning came before the ranks had a handler. (srun reports other failures before its own signals.)
        return Ending(
            "asked" if _by_hand(trial, "SIG", record) else "timeout", f"{reported.ending}, as it started", step
        )
    if not code:
        return Ending("failure", "its ranks ended well and left no result.json", step)
    suspect = node if not _trained(trial) else ""
    return Ending("failure", error, step, suspect=suspect)


def _stopped(trial: Path, start_name: str) -> str | None:
    """Why the ranks stopped and saved; None if they did not."""
    try:
        note = json.loads((trial / "log" / f"{start_name}_stopped.json").read_bytes())
        return str(note.get("reason") or "stopped")
    except (FileNotFoundError, ValueError):
        return None


def _by_hand(trial: Path, reason: str, record: JobRecord) -> bool:
    """Whether a person, and not Slurm's warning before the time limit, sent the signal that stopped the ranks."""
    ends = slurm_moment(record.fields.get("EndTime", ""))
    early = cluster_of(trial).get("signal_delay_s", 120) + _EARLY_S
    return "SIG" in reason and (ends is None or ends - time.time() > early)


def slurm_moment(text: str) -> float | None:
    """Seconds since 1970 from `2026-11-22T19:22:17`, in this machine's time zone; None for `Unknown`."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _batch(trial: Path, job: OwnJob, output: str) -> list[str]:
    """What the batch script, srun and Slurm printed in this start. If trials share the job: this trial's srun only."""
    own = logs.srun_log(trial, job.start_name)
    if own.exists():
        return logs.tail(own)
    path = trial.parent / "slurm" / f"{job.element}.out"
    lines = logs.tail(path if path.exists() or not output else Path(output))
    return logs.of_start(lines, job.start_name)


def _node(trial: Path, job: OwnJob, rank: int | None) -> str:
    """The node of a rank, from the rank's error note; "" if there is no note."""
    note = rank_errors.read(trial / "log", job.start_name, rank) if rank is not None else None
    return note.node if note else ""


def _trained(trial: Path) -> bool:
    """Whether this start has done a step, which shows that its nodes work."""
    return metrics.read_progress(trial / "metrics.jsonl").loss is not None


def last_step(trial: Path) -> int:
    saved = checkpoints.last_good(trial, hashes=False)
    return saved.step if saved else 0


def cluster_of(trial: Path) -> dict[str, int]:
    """The numbers and booleans of the trial's `cluster` config. Reads no YAML: a node's Python may lack the package."""
    text = ("\n" + (trial / "config.yaml").read_text(encoding="utf-8")).partition("\ncluster:\n")[2]
    part = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    values = re.findall(r"^  (\w+): (\d+|true|false)$", part, flags=re.MULTILINE)
    return {name: value == "true" if value in ("true", "false") else int(value) for name, value in values}
