"""How a start of a trial on Slurm ended, by what its ranks, srun and Slurm left. Standard library only."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from launcher.job.node_check import UNFIT
from launcher.job.policy import REPEATABLE, Ending
from launcher.job.slurm_job import Me, Word
from launcher.sweep import checkpoints, logs, metrics, starts

MARK = "== start {attempt} =="
"""The line with which a start begins in what its batch script prints."""
_EARLY_S = 70.0  # by so much Slurm's own USR2 may come before its time (sbatch(1), --signal)
_LATE = 124  # timeout(1): the script itself has ended ranks that would not leave
_SIGNALLED = re.compile(r"Terminated|User defined signal 2")


def how(trial: Path, me: Me, code: int, word: Word) -> Ending:
    """How this start ended, by its ranks' notes, srun's report, and Slurm's word. `code`: srun's exit code."""
    step = last_step(trial)
    stopped = _stopped(trial, me.attempt)
    if stopped is not None:
        kind: starts.Kind = "preempted" if word.preempted else "asked" if _by_hand(trial, stopped, word) else "timeout"
        why = {"preempted": "preempted", "timeout": "reached its time limit"}.get(kind, stopped)
        return Ending(kind, why, step)
    if word.preempted:
        return Ending("preempted", "preempted; it did not save in its grace time", step)
    if word.reason == "TimeLimit" or code == _LATE:
        return Ending("timeout", "reached its time limit; it did not save in time", step)
    batch = _batch(trial, me, word.fields.get("StdOut", ""))
    found = next((one for one in logs.by_start(trial) if one.name == me.attempt), None)
    failure = logs.failure(found, batch) if found else None
    reported = logs.srun_reported(batch)
    node = _node(trial, me, failure.rank if failure else None) or (reported.node if reported else "")
    error = failure.error if failure else reported.how if reported else f"exit code {code}"
    memory = logs.out_of_memory_line(batch)
    if failure and failure.type == UNFIT:
        return Ending("node", failure.error.partition(": ")[2], step, suspect=node, unfit=True)
    if failure and failure.type in REPEATABLE and not memory:
        return Ending("refused", error, step)
    if memory:
        return Ending("failure", memory, step)
    if reported and _SIGNALLED.match(reported.how) and not (failure and failure.type):
        # A warning that came before the ranks could listen; srun's own signals are told apart by what it reports first.
        return Ending("asked" if _by_hand(trial, "SIG", word) else "timeout", f"{reported.how}, as it started", step)
    if not code:
        return Ending("failure", "its ranks ended well and left no result.json", step)
    suspect = node if not _trained(trial) else ""
    return Ending("failure", error, step, suspect=suspect)


def _stopped(trial: Path, attempt: str) -> str | None:
    """Why the ranks stopped and saved; None where they did not."""
    try:
        note = json.loads((trial / "log" / f"{attempt}_stopped.json").read_bytes())
        return str(note.get("reason") or "stopped")
    except (FileNotFoundError, ValueError):
        return None


def _by_hand(trial: Path, reason: str, word: Word) -> bool:
    """Whether a signal that stopped the ranks came from somebody, and not from Slurm before the time limit."""
    ends = slurm_moment(word.fields.get("EndTime", ""))
    early = cluster_of(trial).get("signal_delay_s", 120) + _EARLY_S
    return "SIG" in reason and (ends is None or ends - time.time() > early)


def slurm_moment(text: str) -> float | None:
    """2026-11-22T19:22:17, in this machine's time; None for Unknown."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _batch(trial: Path, me: Me, output: str) -> list[str]:
    """What this start's batch script, srun and Slurm have printed so far; beside other trials, its own srun alone."""
    own = logs.srun_log(trial, me.attempt)
    if own.exists():
        return logs.tail(own)
    path = trial.parent / "slurm" / f"{me.element}.out"
    lines = logs.tail(path if path.exists() or not output else Path(output))
    mark = MARK.format(attempt=me.attempt)
    place = max((place for place, line in enumerate(lines) if line.startswith(mark)), default=-1)
    return lines[place + 1 :]


def _node(trial: Path, me: Me, rank: int | None) -> str:
    """The node of a rank, as its own note says it; "" where it left none."""
    try:
        note = json.loads((trial / "log" / f"{me.attempt}_{rank}_error.json").read_bytes())
        return str(note.get("node") or "")
    except (FileNotFoundError, ValueError):
        return ""


def _trained(trial: Path) -> bool:
    """Whether this start has done a step: then its nodes can."""
    return metrics.read_progress(trial / "metrics.jsonl").loss is not None


def last_step(trial: Path) -> int:
    saved = checkpoints.last_good(trial, hashes=False)
    return saved.step if saved else 0


def cluster_of(trial: Path) -> dict[str, Any]:
    """Of the trial's `cluster` config what is read here: numbers, true and false. A node's own Python may lack yaml."""
    text = ("\n" + (trial / "config.yaml").read_text(encoding="utf-8")).partition("\ncluster:\n")[2]
    part = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^  (\w+): (\d+|true|false)$", part, flags=re.MULTILINE)
    return {name: value == "true" if value in ("true", "false") else int(value) for name, value in found}
