"""From command to sbatch: this launcher and stock hydra-submitit-launcher side by side, in one run.

    make bench        or        python -m tests.benchmarks.submit [--trials 3 100 1000]

Both compose the same configs and submit the same trials to the same recording sbatch. The time is from the start of the
process to its call of sbatch, the best of a few repetitions. Then a sweep of 5,000 trials that are done is shown. Exit
code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks import done_sweep
from tests.benchmarks.login_node import ROOT, LoginNode, Submission, login_node

MOST_SECONDS = 1.5  # for three trials, on two idle cores
MOST_MB = 300.0  # for the largest sweep
MOST_QUESTIONS = 3  # Slurm commands besides sbatch
MOST_STATUS_CPU_S = 1.0  # of 5,000 trials
MOST_REPORT_S = 10.0  # of 5,000 trials, in Markdown
FASTER = {3: 1.0, 100: 6.0, 1000: 8.0}
REPETITIONS = {3: (8, 8), 100: (3, 2), 1000: (3, 1)}  # ours, stock
#: What must not be imported on a login node.
HEAVY = ("torch", "nemo", "nemo_aligner", "transformers", "numpy")


@dataclass(frozen=True)
class Measured:
    """The best of some submissions of one size."""

    trials: int
    ours: Submission
    stock: Submission

    @property
    def ratio(self) -> float:
        return self.stock.seconds / self.ours.seconds


def measure(node: LoginNode, trials: int) -> Measured:
    """By turns, so that both meet the same noise."""
    ours, stock = REPETITIONS.get(trials, (2, 1))
    made: dict[str, list[Submission]] = {"ours": [], "stock": []}
    for turn in range(max(ours, stock)):
        for name, times in (("ours", ours), ("stock", stock)):
            if turn < times:
                print(f"  {trials} trials, {name}, {turn + 1} of {times}", file=sys.stderr, flush=True)
                made[name].append(node.ours(trials) if name == "ours" else node.stock(trials))
    best = {name: min(times, key=lambda one: one.seconds) for name, times in made.items()}
    return Measured(trials, best["ours"], best["stock"])


def imported(node: LoginNode) -> list[str]:
    """Which of HEAVY a submission has imported."""
    folder = str(ROOT / "launcher")
    script = (
        "import atexit, runpy, sys; "
        f"atexit.register(lambda: print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])); "
        f"sys.argv[0] = {folder + '/main.py'!r}; sys.path[0] = {folder!r}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    said = node.ours(3, ["-c", script]).stdout.splitlines()
    return next(line.split()[1:] for line in said if line.startswith("HEAVY"))


def table(measured: Sequence[Measured]) -> str:
    version = importlib.metadata.version("hydra-submitit-launcher")
    lines = [f"command to sbatch      stock {version}    this launcher     ratio     bar"]
    for one in measured:
        bar = f">= {FASTER[one.trials]:g}" if one.trials in FASTER else ""
        times = f"{one.stock.seconds:13.2f} s {one.ours.seconds:14.2f} s {one.ratio:8.1f}x  {bar:>6}"
        lines.append(f"{one.trials:5} trials {times:>42}{'' if passes(one) else '   MISSED'}")
    return "\n".join(lines)


def passes(one: Measured) -> bool:
    return one.ratio >= FASTER.get(one.trials, 0) and (one.trials > 3 or one.ours.seconds < MOST_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.submit", description=main.__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=list(FASTER), help="default 3 100 1000")
    sizes = parser.parse_args(arguments).trials
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with login_node() as node:
        node.ours(1)  # reads what the disk has to read into memory, compiles
        heavy = imported(node)
        measured = [measure(node, trials) for trials in sizes]
        sweep = str(done_sweep.make(node))
        status = min((done_sweep.show(node, "status", sweep) for _ in range(5)), key=lambda one: one.cpu_seconds)
        report = done_sweep.show(node, "report", sweep, "--format", "md")
    print(table(measured))
    last = measured[-1].ours
    peak = max(one.ours.peak_mb for one in measured)
    questions = sum(times for name, times in last.commands.items() if name != "sbatch")
    checks = [
        (f"peak memory of {sizes[-1]} trials", f"{peak:.0f} MB", f"< {MOST_MB:g} MB", peak < MOST_MB),
        ("Slurm commands besides sbatch", f"{questions}", f"<= {MOST_QUESTIONS}", questions <= MOST_QUESTIONS),
        ("of torch, nemo, numpy imported", " ".join(heavy) or "none", "none", not heavy),
        (
            f"status, {done_sweep.TRIALS} trials",
            f"{status.cpu_seconds:.2f} CPU s",
            f"<= {MOST_STATUS_CPU_S:g} s",
            status.cpu_seconds <= MOST_STATUS_CPU_S,
        ),
        (
            f"report in Markdown, {done_sweep.TRIALS} trials",
            f"{report.seconds:.1f} s",
            f"<= {MOST_REPORT_S:g} s",
            report.seconds <= MOST_REPORT_S,
        ),
    ]
    for what, figure, bar, good in checks:
        print(f"{what:34} {figure:>12}   bar {bar}{'' if good else '   MISSED'}")
    return 0 if all(good for *_, good in checks) and all(passes(one) for one in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
