"""Twenty short trials of real NeMo-Aligner in one sweep, and faults at random for as long as they run.

    python -m tests.slurm.soak --minutes 20 --seed 1 --file docs/soak.md

Two trials run at a time, each on 2 of 6 nodes. Every few seconds a random fault hits a random trial that trains (or a
daemon); after the given minutes no more do. In the end there have to be as many results as trials, each equal bit for
bit to that of a trial to which nothing happened. Exit code 1 where that is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.status.trial_state import Look
from launcher.sweep import checkpoints, starts
from tests.slurm import inject
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.faults import Result, lost_steps, version
from tests.slurm.inject import KILL, Fault
from tests.slurm.victim import SAVE, Sweeping, ranks, trained

AT_ONCE = 2
#: Makes trials of one sweep that compute the same.
SAME = "trainer.log_every_n_steps"
#: However often a trial is hit, that alone does not end it.
PATIENT = ("cluster.max_restarts=50", "cluster.max_node_failures=50", "cluster.max_timeouts=50")
_PAUSE = (5.0, 20.0)  # seconds from one fault to the next


def node_blinks(rank: int) -> Fault:
    """The node of a rank is set down, and is back at once for others."""

    def blink(sweep: Sweeping, trial: int = 0) -> None:
        node = inject.node_of(sweep, trial, rank)
        inject.node_down(rank)(sweep, trial)
        # an error where its slurmd has registered it again meanwhile (ReturnToService)
        sweep.desk.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    return blink


def slurmd_crashes(rank: int) -> Fault:
    """slurmd of the node of a rank dies and is started again before Slurm gives the node up; jobs live on."""

    def crash(sweep: Sweeping, trial: int = 0) -> None:
        node = inject.node_of(sweep, trial, rank)
        sweep.hit(trial)
        sweep.desk.cluster.kill(node)
        sweep.desk.cluster.restart(node)

    return crash


def slurmdbd_restarts(sweep: Sweeping, trial: int = 0) -> None:
    sweep.hit(trial)
    sweep.desk.cluster.kill("slurmdbd")
    sweep.desk.cluster.restart("slurmdbd")


def power_fails(rank: int) -> Fault:
    """A node goes dark and boots again."""

    def fail(sweep: Sweeping, trial: int = 0) -> None:
        node = inject.node_of(sweep, trial, rank)
        sweep.hit(trial)
        sweep.desk.cluster.power_off(node)
        sweep.desk.cluster.restart(node)

    return fail


FAULTS: dict[str, Fault] = {
    "USR2": inject.usr2,
    "SIGTERM": inject.term,
    "scontrol requeue": inject.requeue,
    "QoS preemption": inject.preempt,
    "rank killed -9": inject.signal_rank(KILL, 1),
    "rank 0 killed -9": inject.signal_rank(KILL, 0),
    "rank segfaulting": inject.sabotage("segfault", 1),
    "node set down": node_blinks(1),
    "node of the batch script set down": node_blinks(0),
    "node without power": power_fails(1),
    "slurmd crashes and is restarted": slurmd_crashes(1),
    "slurmctld killed -9 and restarted": inject.controller_restarted,
    "slurmdbd killed -9 and restarted": slurmdbd_restarts,
}


@dataclass
class Soak:
    """A soak under way, and what came of it."""

    sweep: Sweeping
    random: random.Random
    say: Callable[[str], None]
    hits: dict[int, list[str]] = field(default_factory=dict)
    """By trial, the faults that it met."""

    def run(self, seconds: float) -> Look:
        """Hurt it for so long, then wait for its end."""
        end = time.monotonic() + seconds
        with self.sweep.watched():
            while time.monotonic() < end and self.sweep.look().exit_code == 3:
                time.sleep(self.random.uniform(*_PAUSE))
                self.hurt()
            self.say("no more faults; waiting for the end")
            return self.sweep.wait_ended(1800)

    def hurt(self) -> None:
        """One fault, for one of the trials that train."""
        training = [trial for trial in sorted({rank.trial for rank in ranks(self.sweep.folder)}) if self.ripe(trial)]
        if not training:
            return
        trial, name = self.random.choice(training), self.random.choice(list(FAULTS))
        step = self.sweep.step(trial)
        try:
            FAULTS[name](self.sweep, trial)
        except (StopIteration, ValueError, AssertionError) as error:
            self.say(f"trial {trial} ended before {name}: {error}")
            return
        self.hits.setdefault(trial, []).append(name)
        self.say(f"trial {trial}, step {step}: {name}")

    def ripe(self, trial: int) -> bool:
        """Whether this start has trained, and saved more than the one before: else it is right to give the trial up."""
        steps = trained(self.sweep.attempts(trial)[-1]) if self.sweep.attempts(trial) else []
        saved = checkpoints.last_good(self.sweep.folder / str(trial), hashes=False)
        return bool(steps) and (trial not in self.hits or (saved is not None and saved.step >= steps[0]))


@dataclass(frozen=True)
class Figures:
    """A soak's, for people and for the exit code."""

    lines: Sequence[str]
    """Markdown."""
    troubles: Sequence[str]


def figures(soak: Soak, look: Look, reference: Result, asked: argparse.Namespace) -> Figures:
    sweep = soak.sweep
    troubles = [f"still there: {text}" for text in sweep.orphans()]
    troubles += [f"still queued: {text}" for text in sweep.desk.cluster.queue()]
    troubles += [f"run twice at once: {text}" for text in sweep.run_twice()] + sorted(sweep.said)
    table, done, lost_all, starts_all = [], 0, 0, 0
    for state in look.trials:
        number = state.trial.number
        attempts = [lines for lines in sweep.attempts(number) if trained(lines)]
        lost, gaps = lost_steps(attempts)
        differences = Result.of(state.trial).differs(reference) if state.state == "DONE" else []
        problems = [*gaps, *differences[:3]]
        if state.state != "DONE":
            problems.append(f"{state.state}: {state.reason}"[:100])
        result = "equal" if not problems else "; ".join(problems)
        done += not problems
        lost_all, starts_all = lost_all + lost, starts_all + state.restarts
        troubles += [f"trial {number}: {problem}" for problem in problems]
        hits = ", ".join(soak.hits.get(number, []))
        ends = ", ".join(str(start.kind) for start in starts.read(state.trial.folder))
        table.append(f"| {number} | {hits} | {ends} | {lost} | {result} |")
    hits = Counter(name for names in soak.hits.values() for name in names)
    lines = [
        f"# Soak: {len(look.trials)} trials, faults at random",
        "",
        f"`python -m tests.slurm.soak --minutes {asked.minutes:g} --seed {asked.seed}`: {asked.trials} trials of real",
        f"NeMo-Aligner (`model=tiny`, fp32, dropout 0.05, {asked.steps} steps, a checkpoint every {SAVE}) in one",
        f"sweep, {AT_ONCE} at a time, each on 2 of 6 nodes of a Slurm {version(sweep.desk.cluster)} on 2 cores;",
        f"{sum(hits.values())} faults in {sweep.seconds / 60:.1f} minutes.",
        "",
        f"- results equal to the uninterrupted run's, bit for bit: **{done} of {len(look.trials)}**",
        f"- restarts: {starts_all}; steps done again: {lost_all} of {asked.steps * asked.trials}",
        f"- trials seen to run twice at once: {len(sweep.run_twice())}",
        f"- processes left over: {len(sweep.orphans())}; jobs left in the queue: {len(sweep.desk.cluster.queue())}",
        "",
        "| fault | times |",
        "| --- | --- |",
        *(f"| {name} | {count} |" for name, count in sorted(hits.items())),
        "",
        "| trial | faults | how its starts ended | steps done again | result |",
        "| --- | --- | --- | --- | --- |",
        *table,
    ]
    return Figures(lines, troubles)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a soak on a cluster of its own, and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="faults come for so long (default 20)")
    parser.add_argument("--trials", type=int, default=20, help="default 20")
    parser.add_argument("--steps", type=int, default=80, help="of each trial (default 80, half a minute on two cores)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of faults and trials (default 1)")
    parser.add_argument("--file", type=Path, help="Markdown file for the figures")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up
    began = time.monotonic()
    shape = (f"trainer.dpo.max_epochs={chosen.steps}", f"trainer.dpo.max_steps={chosen.steps}")

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="soak-") as folder, Cluster(nodes=6, progress=say) as cluster:
        os.environ.update({name: cluster.env[name] for name in ("SLURM_CONF", "PATH")})  # for launcher.slurm.client
        cluster.sacctmgr("modify", "qos", "normal", "set", "GraceTime=60")
        alone = Sweeping(Desk(cluster, Path(folder) / "alone"))
        alone.desk.set_up()
        alone.submit(*shape, "wait=true")
        reference = Result.of(alone.look().trials[0].trial)
        say("the uninterrupted trial is done")
        sweep = Sweeping(Desk(cluster, Path(folder) / "soak"))
        sweep.desk.set_up()
        sweep.submit(*shape, *PATIENT, f"cluster.array_parallelism={AT_ONCE}", f"{SAME}=range(1,{chosen.trials + 1})")
        soak = Soak(sweep, random.Random(chosen.seed), say)
        look = soak.run(60 * chosen.minutes)
        found = figures(soak, look, reference, chosen)
        inject.mend(cluster)
    print("\n".join(found.lines))
    if chosen.file:
        chosen.file.write_text("\n".join(found.lines) + "\n")
    for trouble in found.troubles:
        print(f"error: {trouble}", file=sys.stderr)
    return 1 if found.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
