"""A sweep of thousands of trials that are done, and what `status` and `report` take to show it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from tests.benchmarks.login_node import ROOT, LoginNode
from tests.unit import report_sweep

TRIALS = 5000
STEPS = 32  # as many as the default sweep of this machine trains


@dataclass(frozen=True)
class Shown:
    """One command that shows the sweep."""

    cpu_seconds: float
    seconds: float


def make(node: LoginNode, trials: int = TRIALS) -> Path:
    """Submit so many trials, and write for each what a trial of one start leaves (27 kB)."""
    node.ours(trials)
    folder = node.folder / f"sweep{node.runs}"
    beta = min(report_sweep.MEANS)
    metrics = "".join(f"{json.dumps(line)}\n" for line in _lines(beta))
    for trial in Sweep.load(folder).trials:
        (trial.folder / "log").mkdir()
        (trial.folder / "log" / f"{4711 + trial.number}.0_0_log.out").write_text("trained\n")
        starts.began(trial.folder, starts.Start(f"{4711 + trial.number}.0", f"4711_{trial.number}", "node1", 1.0, 0))
        starts.ended(trial.folder, f"{4711 + trial.number}.0", "done", "done", STEPS)
        (trial.folder / "metrics.jsonl").write_text(metrics)
        outcome = {**report_sweep.result(beta), "beta": trial.beta}
        (trial.folder / "result.json").write_text(json.dumps(outcome, indent=1))
    return folder


def _lines(beta: float) -> list[dict[str, object]]:
    """report_sweep's start, with a line of NeMo-Aligner's training metrics for each step."""
    first, *rest = report_sweep.lines(beta)
    names = ("loss", "acc", "grad_norm", "lr", "rewards_chosen_mean", "rewards_rejected_mean", "rewards_all_mean")
    names += ("rewards_all_std", "global_batch_size", "consumed_samples", "step_time", "epoch")
    trained = [
        {"time": first["time"] + 30 + step, "step": step, "max_steps": STEPS}
        | {f"train/{name}": 0.6931471805599453 / step for name in names}
        for step in range(1, STEPS + 1)
    ]
    return [first, *rest[:3], *trained, *rest[3:]]


def show(node: LoginNode, *words: str) -> Shown:
    """Run a subcommand of the launcher. Raises RuntimeError where it does not end with 0."""
    env = {**os.environ, "PATH": f"{node.bin}:{os.environ.get('PATH', os.defpath)}", "SLURM_CONF": os.devnull}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "launcher", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stdout[-2000:]}")
    return Shown(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds)
