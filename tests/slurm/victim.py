"""A sweep of real NeMo-Aligner trials on the tests' cluster, to which faults happen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.status import states
from launcher.status.trial_state import Look
from launcher.sweep import metrics
from launcher.sweep.folder import Sweep
from tests.slurm.daemon import Pid, jobs_processes
from tests.slurm.desk import ROOT, Desk

STEPS, SAVE = 24, 4
#: With this the table's main faults are repeated: gradients are added up otherwise than in fp32.
BF16 = "trainer.precision=bf16"
#: Trains for a minute and more, where 24 steps would be over before Slurm has noticed.
LONG = ("trainer.dpo.max_epochs=14", "trainer.dpo.max_steps=120")
LONGER = ("trainer.dpo.max_epochs=40", "trainer.dpo.max_steps=320")  # more than two minutes on any machine so far
FENCE = 10.0
"""Seconds for which a start that Slurm has lost sight of may go on beside its successor, which imports NeMo by then."""
SABOTAGE = Path(__file__).with_name("sabotage")
#: A trial in fp32, with dropout, on 2 nodes: 2.7 epochs of 9 steps, large enough to be hit (0.5 s).
WORDS = (
    "model=tiny", "data=sample", f"paths.models={ROOT}/models", f"paths.data={ROOT}/data",
    "trainer.precision=32", "model.peft.lora_tuning.adapter_dropout=0.05", "model.global_batch_size=32",
    "trainer.num_nodes=2", "trainer.devices=1", "trainer.dpo.max_epochs=3", f"trainer.dpo.max_steps={STEPS}",
    f"trainer.dpo.val_check_interval={SAVE}", f"trainer.dpo.save_interval={SAVE}",
    "cluster.gpus_per_node=null", "cluster.mem_gb=3", "cluster.time=20",
)  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """A rank's process."""

    pid: Pid
    trial: int
    attempt: str
    """`<Slurm's own number of the job>.<how often it was requeued>`"""
    rank: int
    node: str


def ranks(sweep: Path) -> list[Rank]:
    """The processes that train trials of a sweep, wherever they run and whoever has forgotten them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"launcher.train.slurm_rank" not in words or b"python" not in words[0]:
                continue
            trial = Path(os.fsdecode(words[words.index(b"launcher.train.slurm_rank") + 1]))
            if trial.parent != sweep:
                continue
            lines = os.fsdecode((folder / "environ").read_bytes()).split("\0")
            env = dict(line.split("=", 1) for line in lines if "=" in line)
            attempt = f"{env['SLURM_JOB_ID']}.{env.get('SLURM_RESTART_COUNT', '0')}"
            pid, rank = Pid(int(folder.name)), int(env["SLURM_PROCID"])
            found.append(Rank(pid, int(trial.name), attempt, rank, env["SLURMD_NODENAME"]))
    return sorted(found, key=lambda each: (each.trial, each.attempt, each.rank))


@dataclass
class Sweeping:
    """A sweep under way. `faults` are the times at which something was done to it."""

    desk: Desk
    faults: dict[int, list[float]] = field(default_factory=dict)
    """By trial, seconds since 1970."""
    twice: dict[str, float] = field(default_factory=dict)
    """Seconds for which two starts of a trial were seen to live at the same time, by their names."""
    seconds: float = 0.0
    """How long it was watched."""
    said: set[str] = field(default_factory=set)
    """What `status` said of trials that went on, and should not have."""

    def submit(self, *words: str) -> None:
        """launcher/main.py with WORDS and these; returns when the sweep is submitted."""
        process = self.begin(*words)
        said = process.communicate(timeout=900)[1]
        assert process.returncode == 0, said

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same, still running."""
        self.desk.env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SABOTAGE)}
        given = {word.partition("=")[0] for word in words}
        rest = [word for word in WORDS if word.partition("=")[0] not in given]
        return self.desk.start("-m", *rest, *words, standin=False)

    def submitted(self) -> bool:
        """Whether its array's id is in its folder."""
        return (self.folder / "sweep.json").exists() and all(self.desk.arrays() or [""])

    @property
    def folder(self) -> Path:
        return self.desk.sweep_folder

    def look(self) -> Look:
        return states.look(Sweep.load(self.folder))

    def job(self, trial: int = 0) -> str:
        """As scancel takes it: `69_0`."""
        return self.look().trials[trial].job

    def attempts(self, trial: int = 0) -> list[list[dict[str, Any]]]:
        """The lines of metrics.jsonl, by start of rank 0."""
        found: list[list[dict[str, Any]]] = []
        for line in metrics.read_all(self.folder / str(trial) / "metrics.jsonl"):
            if (line.get("phase") == metrics.STARTING and line.get("detail") == "importing torch") or not found:
                found.append([])
            found[-1].append(line)
        return found

    def step(self, trial: int = 0) -> int:
        """Steps done by the attempt that started last."""
        attempts = self.attempts(trial)
        return max(trained(attempts[-1]), default=0) if attempts else 0

    def ranks(self, trial: int = 0) -> list[Rank]:
        return [rank for rank in ranks(self.folder) if rank.trial == trial]

    def until(self, true: Callable[[], bool], seconds: float = 300) -> None:
        """Wait; AssertionError with what the sweep was doing where it does not come true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.words()
            time.sleep(0.02)

    def reach(self, step: int, trial: int = 0, attempt: int = 1, seconds: float = 300) -> None:
        """Wait until the `attempt`-th start of a trial that trained has done `step`."""

        def there() -> bool:
            training = [each for each in self.attempts(trial) if trained(each)]
            return len(training) >= attempt and max(trained(training[-1])) >= step

        self.until(there, seconds)

    def hit(self, trial: int = 0) -> None:
        """Note that something happens to a trial from here on."""
        self.faults.setdefault(trial, []).append(time.time())

    def sabotage(self, what: str, rank: int, trial: int = 0) -> None:
        """See sabotage/sitecustomize.py."""
        beside = self.folder / str(trial) / "sabotage.new"
        beside.write_text(what)
        beside.rename(beside.with_name(f"sabotage_{rank}"))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look ten times a second whether any trial runs twice at once."""
        over, began = threading.Event(), time.monotonic()

        def watch() -> None:
            looked = time.monotonic()
            while not over.wait(0.1):
                since, looked = looked, time.monotonic()
                alive: dict[int, set[str]] = {}
                for rank in ranks(self.folder):
                    alive.setdefault(rank.trial, set()).add(rank.attempt)
                for trial, each in alive.items():
                    if len(each) > 1:
                        name = f"{trial}: {', '.join(sorted(each))}"
                        self.twice[name] = self.twice.get(name, 0.0) + looked - since

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.seconds += time.monotonic() - began

    def wait_ended(self, seconds: float = 600) -> Look:
        """Wait until nothing of the sweep waits or runs; notes what `status` says wrongly meanwhile."""
        end = time.monotonic() + seconds
        quiet = 0
        given_up: set[str] = set()
        while True:
            look = self.look()
            queue = self.desk.cluster.run("squeue", "-h", "-r", "--me", "-o", "%i %T %r", check=False)
            waiting = queue.stdout.splitlines() if queue.returncode == 0 else ["squeue does not answer"]
            for state in look.trials:
                if state.state == "DONE":
                    done = (state.trial.result() or {}).get("steps")
                    if done is None or done != state.trial.config()["trainer"]["dpo"]["max_steps"]:
                        self.said.add(f"status said trial {state.trial.number} DONE after {done} steps")
                    if state.trial.name in given_up:
                        self.said.add(f"status gave trial {state.trial.number} up, and it went on")
                if state.state in states.ENDED_BADLY:
                    given_up.add(state.trial.name)
            quiet = quiet + 1 if look.exit_code != 3 and not waiting else 0
            if quiet == 3:
                return look
            assert time.monotonic() < end, f"{self.words()}\nqueue: {waiting}"
            time.sleep(1)

    def orphans(self) -> list[str]:
        """Processes of jobs that are over: ranks, scripts. (slurmstepd of a node without slurmd waits for that.)"""
        rest = [f"rank {each.rank} of trial {each.trial} on {each.node}" for each in ranks(self.folder)]
        for pid in jobs_processes(self.desk.cluster.places.conf):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                name = Path(f"/proc/{pid.number}/comm").read_text().strip()
                rest += [] if name == "slurmstepd" else [f"{name} ({pid.number})"]
        return rest

    def run_twice(self) -> list[str]:
        """Trials that went on in two places."""
        return [f"trial {name} for {seconds:.0f} s" for name, seconds in self.twice.items() if seconds > FENCE]

    def words(self) -> str:
        """What it does and printed last, for a failed test."""
        text = []
        for state in self.look().trials:
            last = state.log.read_text(errors="replace")[-3000:] if state.log else ""
            text.append(
                f"trial {state.trial.number}: {state.state} ({state.reason}) step {state.progress.step}\n{last}"
            )
        batch = sorted((self.folder / "slurm").glob("*.out"))
        return "\n".join([*text, *(f"{file.name}:\n{file.read_text(errors='replace')[-3000:]}" for file in batch)])


def trained(lines: list[dict[str, Any]]) -> list[int]:
    """The training steps of an attempt."""
    return [line["step"] for line in lines if "train/loss" in line]
