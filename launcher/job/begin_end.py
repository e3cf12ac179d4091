"""What a trial's batch script calls before and after srun, on the node it runs on, outside of any container.

    python -m launcher.job.begin_end begin TRIAL [beside]           exit code 0: start the ranks
    python -m launcher.job.begin_end end TRIAL CODE SCRIPT [WORDS]  the script's own exit code

`begin` takes the trial over, notes how the start before ended if that could not say so itself, and stops one that was
started too often. `end` sees how this start ended and has the trial go on: requeued, or where that is not allowed as a
new job. Rules are in launcher.job.policy, what happened is kept by launcher.sweep.starts. Standard library only.

Trials that share a job (cluster.trials_per_node) each `begin` beside others and `end` without a script; when the last
one has, those that are to go on do so together:

    python -m launcher.job.begin_end again TRIAL ... -- SCRIPT [WORDS]
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.job import slurm_job
from launcher.job.how_it_ended import MARK, cluster_of, how, last_step
from launcher.job.policy import Decision, Ending, decide
from launcher.job.slurm_job import Me, Word
from launcher.sweep import bad_nodes
from launcher.sweep import starts as history
from launcher.sweep.starts import GAVE_UP, SAID, Start

_BY_SLURM: dict[str, tuple[history.Kind, str]] = {
    "NODE_FAIL": ("node", "a node failed"),
    "PREEMPTED": ("preempted", "preempted, and its grace time was over"),
}
#: Exit codes of `begin` besides 0 and 1.
DONE, REQUEUED = 3, 75
_LATER = "is to go on"  # what has been decided, until it is done


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
    cluster = cluster_of(trial)
    chain = [start for start in starts if start.chain == me.chain]
    step = last_step(trial)
    decision = Decision(True, "")
    if chain and chain[-1].kind is None and chain[-1].name != me.attempt:
        chain[-1], decision = _without_a_word(trial, chain, step, cluster, me)
    if beside and (trial / "result.json").exists():
        return DONE
    if beside and chain and chain[-1].gave_up:
        print(f"trial {trial.name} {chain[-1].then}", flush=True)
        return 1
    if beside and chain and starts[-1].chain != me.chain:
        print(f"trial {trial.name} has been submitted again since, and goes on there: {starts[-1].name}", flush=True)
        return 1
    start = Start(name=me.attempt, chain=me.chain, nodes=me.nodes, began=round(time.time(), 3), first_step=step)
    print(MARK.format(attempt=me.attempt), f"trial {trial.name} on {me.nodes}", _story(chain), flush=True)
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
    kind, why = _BY_SLURM.get(slurm_job.how_it_ended(me.element, last.name), ("requeued", SAID["requeued"]))
    decision = decide(chain[:-1], last, Ending(kind, why, step), cluster, {})
    then = "requeued by Slurm" if decision.go_on else f"{GAVE_UP}{decision.why}"
    history.ended(trial, last.name, kind, why, step, then)
    return replace(last, kind=kind, why=why, last_step=step, then=then), decision


def _elsewhere(trial: Path, me: Me, cluster: Mapping[str, Any]) -> bool:
    """Whether this job goes back into the queue, since a sibling has found one of its nodes to be bad meanwhile."""
    blamed = {one.name: one.why for one in bad_nodes.read(trial.parent, me.cluster)}
    if not blamed or not cluster.get("requeue", True):
        return False
    here = [node for node in slurm_job.hostnames(me.nodes) if node in blamed]
    if not here:
        return False
    word = slurm_job.ask(me.element)
    away = _possible(me, word, list(blamed))
    if not set(here) & set(away) or not slurm_job.requeue(me.element):
        return False
    slurm_job.keep_away(me.element, word, away)
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
    now = next((start for start in starts if start.name == me.attempt), None)
    if now is None:  # the disk was full as it began
        now = Start(name=me.attempt, chain=me.chain, nodes=me.nodes, began=time.time(), first_step=last_step(trial))
    if (trial / "result.json").exists():
        history.ended(trial, me.attempt, "done", "", last_step(trial))
        return 0
    if history.owner(trial) != me.attempt:
        print(f"{SAID['replaced']}: {history.owner(trial)}", flush=True)
        history.ended(trial, me.attempt, "replaced", SAID["replaced"], last_step(trial))
        return code or 1
    word = slurm_job.ask(me.element)
    if word.restarts > me.restarts:
        return code or 1  # Slurm requeues it itself; its next start asks the accounting why
    if not word.ours:
        history.ended(trial, me.attempt, "cancelled", "cancelled", last_step(trial))
        return code or 1
    ending = how(trial, me, code, word)
    chain = [start for start in starts if start.chain == me.chain and start.kind]
    bad = bad_nodes.read(trial.parent, me.cluster)
    decision = decide(chain, now, ending, cluster_of(trial), {one.name: one.why for one in bad})
    for one in bad:
        if one.name in decision.acquit:
            bad_nodes.remove(trial.parent, one)
    if not decision.go_on:
        print(f"gives up: {decision.why}", flush=True)
        history.ended(trial, me.attempt, ending.kind, ending.why, ending.step, then=f"{GAVE_UP}{decision.why}")
        return code or 1
    guilty = _possible(me, word, decision.exclude)
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
        now = next((start for start in history.read(trial) if start.name == me.attempt), None)
        waiting += [trial] if now and now.then == _LATER else []
    if waiting:
        word = slurm_job.ask(me.element)
        if word.restarts == me.restarts and word.ours:
            return _go_on(waiting, me, word, script)
    return 1 if left else 0


def _go_on(trials: Sequence[Path], me: Me, word: Word, script: Sequence[str]) -> int:
    """The last that this script does: a requeue ends it."""
    sweep = trials[0].parent
    bad = [one.name for one in bad_nodes.read(sweep, me.cluster)]
    away = _possible(me, word, bad)

    def noted(then: str) -> None:
        for trial in trials:
            history.goes_on(trial, me.attempt, then)

    if cluster_of(trials[0]).get("requeue", True):
        noted("requeued")
        if slurm_job.requeue(me.element):
            if away:
                slurm_job.keep_away(me.element, word, away)
            return 0
    later = slurm_job.continuation(sweep, [int(trial.name) for trial in trials], me, word, script, away)
    noted(f"goes on as job {later}")
    print(f"goes on as job {later}", flush=True)
    return 0


def _possible(me: Me, word: Word, nodes: Sequence[str]) -> list[str]:
    """Of nodes to keep away from those that the job can do without: not asked for by name, and enough are left."""
    if not nodes:
        return []  # as nearly always, and there is little time: nobody is asked
    needed = len(slurm_job.hostnames(me.nodes))
    required = set(slurm_job.hostnames(word.required))
    partition = word.fields.get("Partition", "").split(",")[0]
    chosen: list[str] = []
    for node in dict.fromkeys(nodes):
        if node not in required and slurm_job.room_without(partition, [*chosen, node], needed):
            chosen.append(node)
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
