"""What a trial's batch script calls before and after srun, on the node it runs on, outside of any container.

    python -m launcher.submit.afterwards begin TRIAL [beside]           exit code 0: start the ranks
    python -m launcher.submit.afterwards end TRIAL CODE SCRIPT [WORDS]  the script's own exit code

`begin` takes the trial over, notes how the start before ended if that could not say so itself, and stops one that was
started too often. `end` sees how this start ended and has the trial go on: requeued, or where that is not allowed as a
new job. Rules are in launcher.submit.policy, what happened is kept by launcher.history. Standard library only.

Trials that share a job (cluster.trials_per_node) each `begin` beside others and `end` without a script; when the last
one has, those that are to go on do so together:

    python -m launcher.submit.afterwards again TRIAL ... -- SCRIPT [WORDS]
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import attempts, bad_nodes, checkpoints, history, metrics
from launcher.history import SAID, Start
from launcher.submit import job
from launcher.submit.job import Me, Word
from launcher.submit.node_check import UNFIT
from launcher.submit.policy import REPEATABLE, Decision, Ending, decide

_EARLY_S = 70.0  # by so much Slurm's own USR2 may come before its time (sbatch(1), --signal)
_BY_SLURM: dict[str, tuple[history.Kind, str]] = {
    "NODE_FAIL": ("node", "a node failed"),
    "PREEMPTED": ("preempted", "preempted, and its grace time was over"),
}
#: Exit codes of `begin` besides 0 and 1.
DONE, REQUEUED = 3, 75
_LATER = "is to go on"  # what has been decided, until it is done
_GAVE_UP = "gave up: "
_LATE = 124  # timeout(1): the script itself has ended ranks that would not leave
_SIGNALLED = re.compile(r"Terminated|User defined signal 2")
_MARK = "== start {attempt} =="


def main(words: Sequence[str]) -> int:
    # A requeue ends this very script; what is left to do has KillWait (30 s) for it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    what, trial = words[0], Path(words[1])
    if what == "begin":
        return begin(trial, Me.here(), beside="beside" in words[2:])
    if what == "again":
        place = words.index("--")
        return again([Path(word) for word in words[1:place]], Me.here(), words[place + 1 :])
    return end(trial, Me.here(), int(words[2]), words[3:])


# -- before ------------------------------------------------------------------------------------------------------------


def begin(trial: Path, me: Me, beside: bool = False) -> int:
    """0: start the ranks. REQUEUED: the job is back in the queue. Else the exit code of a script that gives up.

    `beside` others the job may have been started for them alone: DONE where this trial is, 1 where it gave up before,
    or where a retry's job has it.
    """
    starts = history.read(trial)
    cluster = _cluster(trial)
    chain = [start for start in starts if start.chain == me.chain]
    step = _step(trial)
    decision = Decision(True, "")
    if chain and chain[-1].kind is None and chain[-1].attempt != me.attempt:
        chain[-1], decision = _without_a_word(trial, chain, step, cluster, me)
    if beside and (trial / "result.json").exists():
        return DONE
    if beside and chain and chain[-1].then.startswith(_GAVE_UP):
        print(f"trial {trial.name} {chain[-1].then}", flush=True)
        return 1
    if beside and chain and starts[-1].chain != me.chain:
        print(f"trial {trial.name} has been submitted again since, and goes on there: {starts[-1].attempt}", flush=True)
        return 1
    start = Start(attempt=me.attempt, chain=me.chain, nodes=me.nodes, began=round(time.time(), 3), first_step=step)
    print(_MARK.format(attempt=me.attempt), f"trial {trial.name} on {me.nodes}", _story(chain), flush=True)
    if (trial / "result.json").exists():
        history.take_over(trial, me.attempt)
        history.began(trial, start)
        return 0  # its ranks see that as well, and leave
    if not decision.go_on:
        print(f"gives up: {decision.why}", flush=True)
        return 1
    if _elsewhere(trial, me, cluster):
        return REQUEUED
    history.take_over(trial, me.attempt)
    history.began(trial, start)
    return 0


def _without_a_word(
    trial: Path, chain: Sequence[Start], step: int, cluster: Mapping[str, Any], me: Me
) -> tuple[Start, Decision]:
    """How the last start ended, of which its own script could not tell: Slurm requeued it, or its node is lost."""
    last = chain[-1]
    kind, why = _BY_SLURM.get(job.how_it_ended(me.element, last.attempt), ("requeued", SAID["requeued"]))
    decision = decide(chain[:-1], last, Ending(kind, why, step), cluster, {})
    then = "requeued by Slurm" if decision.go_on else f"{_GAVE_UP}{decision.why}"
    history.ended(trial, last.attempt, kind, why, step, then)
    return replace(last, kind=kind, why=why, last_step=step, then=then), decision


def _elsewhere(trial: Path, me: Me, cluster: Mapping[str, Any]) -> bool:
    """Whether this job goes back into the queue, since a sibling has found one of its nodes to be bad meanwhile."""
    blamed = {one.name: one.why for one in bad_nodes.read(trial.parent, me.cluster)}
    here = [node for node in job.hostnames(me.nodes) if node in blamed]
    if not here or not cluster.get("requeue", True):
        return False
    word = job.ask(me.element)
    away = _possible(word, list(blamed), len(job.hostnames(me.nodes)))
    if not set(here) & set(away) or not job.requeue(me.element):
        return False
    job.keep_away(me.element, word, away)
    print(f"does not start on {', '.join(here)}: {blamed[here[0]]}; requeued", flush=True)
    return True


def _story(chain: Sequence[Start]) -> str:
    """`after: preempted, a node failed (twice)`"""
    ends = [SAID[start.kind] for start in chain if start.kind]
    told = [f"{text} ({ends.count(text)} times)" if ends.count(text) > 1 else text for text in dict.fromkeys(ends)]
    return f"after: {', '.join(told)}" if told else ""


# -- after -------------------------------------------------------------------------------------------------------------


def end(trial: Path, me: Me, code: int, script: Sequence[str] = ()) -> int:
    """Decide whether the trial goes on, and see to it if a `script` with its words is given; the exit code for that."""
    starts = history.read(trial)
    now = next((start for start in starts if start.attempt == me.attempt), None)
    if now is None:  # the disk was full as it began
        now = Start(attempt=me.attempt, chain=me.chain, nodes=me.nodes, began=time.time(), first_step=_step(trial))
    if (trial / "result.json").exists():
        history.ended(trial, me.attempt, "done", "", _step(trial))
        return 0
    if history.owner(trial) != me.attempt:
        print(f"{SAID['replaced']}: {history.owner(trial)}", flush=True)
        history.ended(trial, me.attempt, "replaced", SAID["replaced"], _step(trial))
        return code or 1
    word = job.ask(me.element)
    if word.restarts > me.restarts:
        return code or 1  # Slurm requeues it itself; its next start asks the accounting why
    if not word.ours:
        history.ended(trial, me.attempt, "cancelled", "cancelled", _step(trial))
        return code or 1
    ending = how(trial, me, now, code, word)
    chain = [start for start in starts if start.chain == me.chain and start.kind]
    blamed = {one.name: one.why for one in bad_nodes.read(trial.parent, me.cluster)}
    decision = decide(chain, now, ending, _cluster(trial), blamed)
    for one in bad_nodes.read(trial.parent, me.cluster):
        if one.name in decision.acquit:
            bad_nodes.remove(trial.parent, one)
    if not decision.go_on:
        print(f"gives up: {decision.why}", flush=True)
        history.ended(trial, me.attempt, ending.kind, ending.why, ending.step, then=f"{_GAVE_UP}{decision.why}")
        return code or 1
    guilty = _possible(word, decision.exclude, len(job.hostnames(me.nodes)))
    for node in guilty:
        bad_nodes.add(trial.parent, me.cluster, node, ending.why, int(trial.name))
    print(f"{ending.why}; goes on from step {ending.step}", flush=True)
    history.ended(trial, me.attempt, ending.kind, ending.why, ending.step, _LATER, "".join(guilty))
    return _go_on([trial], me, word, script) if script else 0


def again(trials: Sequence[Path], me: Me, script: Sequence[str]) -> int:
    """Have those of a job's trials go on that are to; the exit code for the script: 1 where one is lost."""
    left = [trial for trial in trials if not (trial / "result.json").exists()]
    waiting = []
    for trial in left:
        now = next((start for start in history.read(trial) if start.attempt == me.attempt), None)
        waiting += [trial] if now and now.then == _LATER else []
    if waiting:
        word = job.ask(me.element)
        if word.restarts == me.restarts and word.ours:
            return _go_on(waiting, me, word, script)
    return 1 if left else 0


def _go_on(trials: Sequence[Path], me: Me, word: Word, script: Sequence[str]) -> int:
    """The last that this script does: a requeue ends it."""
    sweep = trials[0].parent
    bad = [one.name for one in bad_nodes.read(sweep, me.cluster)]
    away = _possible(word, bad, len(job.hostnames(me.nodes)))

    def noted(then: str) -> None:
        for trial in trials:
            history.goes_on(trial, me.attempt, then)

    if _cluster(trials[0]).get("requeue", True):
        noted("requeued")
        if job.requeue(me.element):
            if away:
                job.keep_away(me.element, word, away)
            return 0
    later = job.continuation(sweep, [int(trial.name) for trial in trials], me, word, script, away)
    noted(f"goes on as job {later}")
    print(f"goes on as job {later}", flush=True)
    return 0


def _possible(word: Word, nodes: Sequence[str], needed: int) -> list[str]:
    """Of nodes to keep away from those that the trial can do without: not asked for by name, and enough are left."""
    required = set(job.hostnames(word.required))
    partition = word.fields.get("Partition", "").split(",")[0]
    chosen: list[str] = []
    for node in dict.fromkeys(nodes):
        if node not in required and job.room_without(partition, [*chosen, node], needed):
            chosen.append(node)
    return chosen


def how(trial: Path, me: Me, now: Start, code: int, word: Word) -> Ending:
    """How this start ended, by its ranks' notes, srun's report, and Slurm's word. `code`: srun's exit code."""
    step = _step(trial)
    stopped = _stopped(trial, me.attempt)
    if stopped is not None:
        kind: history.Kind = "preempted" if word.preempted else "asked" if _by_hand(trial, stopped, word) else "timeout"
        why = {"preempted": "preempted", "timeout": "reached its time limit"}.get(kind, stopped)
        return Ending(kind, why, step)
    if word.preempted:
        return Ending("preempted", "preempted; it did not save in its grace time", step)
    if word.reason == "TimeLimit" or code == _LATE:
        return Ending("timeout", "reached its time limit; it did not save in time", step)
    batch = _batch(trial, me, word.fields.get("StdOut", ""))
    found = next((one for one in attempts.attempts(trial) if one.name == me.attempt), None)
    failure = attempts.failure(found, batch) if found else None
    reported = attempts.srun_reported(batch)
    node = _node(trial, me, failure.rank if failure else None) or (reported.node if reported else "")
    error = failure.error if failure else reported.how if reported else f"exit code {code}"
    memory = attempts.said_out_of_memory(batch)
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


# -- what there is to see ----------------------------------------------------------------------------------------------


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
    early = _cluster(trial).get("signal_delay_s", 120) + _EARLY_S
    return "SIG" in reason and (ends is None or ends - time.time() > early)


def slurm_moment(text: str) -> float | None:
    """2026-11-22T19:22:17, in this machine's time; None for Unknown."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _batch(trial: Path, me: Me, output: str) -> list[str]:
    """What this start's batch script, srun and Slurm have printed so far; beside other trials, its own srun alone."""
    own = attempts.srun_log(trial, me.attempt)
    if own.exists():
        return attempts.tail(own)
    path = trial.parent / "slurm" / f"{me.element}.out"
    lines = attempts.tail(path if path.exists() or not output else Path(output))
    mark = _MARK.format(attempt=me.attempt)
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


def _step(trial: Path) -> int:
    saved = checkpoints.last_good(trial, hashes=False)
    return saved.step if saved else 0


def _cluster(trial: Path) -> dict[str, Any]:
    """Of the trial's `cluster` config what is read here: numbers, true and false. A node's own Python may lack yaml."""
    text = ("\n" + (trial / "config.yaml").read_text(encoding="utf-8")).partition("\ncluster:\n")[2]
    part = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^  (\w+): (\d+|true|false)$", part, flags=re.MULTILINE)
    return {name: value == "true" if value in ("true", "false") else int(value) for name, value in found}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
