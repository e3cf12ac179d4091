"""Beside TRL, on the same pairs, weights and order: per-pair log-ratios of an adapter, and CPU seconds of a sweep.

    python -m tests.benchmarks.beside_trl --trl PYTHON   with a Python that has TRL
    python -m tests.benchmarks.beside_trl --make FOLDER  makes that environment there first (no part of this project)

SmolLM2-135M, pairs of up to 256 tokens, 8 a step, one thread, no dropout; log-ratios in fp32, seconds in bf16. TRL as
documented has micro batches of 8, recomputes activations, and its cache of the reference misses between betas; at its
best it has micro batches of one, no recomputation, max_length null, so that its cache is found again, and
MALLOC_MMAP_MAX_=0. Seconds of a sweep of 3 x 100 steps are extrapolated from the mean of a few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import our_side
from tests.benchmarks import training_parts as parts
from tests.benchmarks.bench import Bench, Line, say
from tests.integration.conftest import REPOSITORY

BARS = {"as documented": 0.33, "at its best": 0.45}
REFERENCES = {"as documented": 3, "at its best": 1}  # passes over the pairs in a sweep of three betas
BETAS, STEPS, WITHIN = 3, 100, 1e-4
BATCH = 8
HF = REPOSITORY / "models" / "hf" / "smollm2_135m"


def compare(bench: Bench, trl: str, steps: int) -> Iterator[Line]:
    say("log-ratios of an adapter: ours")
    found = ours(bench, our_side.log_ratios, "32", 1)
    say("log-ratios of an adapter: TRL's")
    theirs = beside(bench, trl, "log-ratios", found)
    apart = max(abs(own - other) for own, other in zip(found["log_ratios"], theirs, strict=True))
    largest = max(map(abs, theirs))
    figure = f"{apart:.1e}, where they are up to {largest:.1f}"
    yield f"log-ratios of {BATCH} pairs, beside TRL's", figure, f"<= {WITHIN:g}", apart <= WITHIN
    say(f"seconds of {steps} steps: ours")
    found = ours(bench, our_side.time_default, "bf16", steps)
    own = BETAS * STEPS * mean(found["steps"]) + STEPS * mean(found["references"])
    yield "ours, a step and its reference", f"{mean(found['steps']):.1f} + {mean(found['references']):.1f} s", "", True
    for way, bar in BARS.items():
        say(f"seconds of {steps} steps: TRL {way}")
        theirs = beside(bench, trl, way, found)
        whole = BETAS * STEPS * mean(theirs["steps"]) + REFERENCES[way] * STEPS * theirs["reference"]
        figure = f"{mean(theirs['steps']):.1f} + {theirs['reference']:.1f} s"
        yield f"TRL {way}, a step and its reference", figure, "", True
        share = own / whole
        what = f"{BETAS} x {STEPS} steps, beside TRL {way}"
        yield what, f"{own:.0f} of {whole:.0f} s: {share:.2f}", f"<= {bar:g}", share <= bar


def mean(values: list[float]) -> float:
    """Without the first, which does what a process does but once."""
    return sum(values[1:]) / (len(values) - 1)


def ours(bench: Bench, function: Any, precision: str, steps: int) -> dict[str, Any]:
    keys = {
        "model__micro_batch_size": 4,
        "trainer__precision": precision,
        "trainer__dpo__max_steps": steps,
        "compute__cache_reference": False,
    }
    return parts.in_a_rank(function, bench.trial(f"beside_{precision}", "smollm2_135m", 256, **keys))


def beside(bench: Bench, trl: str, way: str, found: dict[str, Any]) -> Any:
    """What trl_side.py answers."""
    name = way.replace(" ", "_")
    work, out = bench.folder / f"{name}.json", bench.folder / f"{name}_out.json"
    given = {"hf": str(HF), "batch": BATCH, "beta": 0.1, "way": way, "out": str(out)}
    work.write_text(json.dumps({**given, **{key: found[key] for key in ("pairs", "adapters", "rank", "alpha")}}))
    variables = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(bench.folder / "hf"),
    }
    if way == "at its best":
        variables["MALLOC_MMAP_MAX_"] = "0"
    command = [trl, str(REPOSITORY / "tests" / "benchmarks" / "trl_side.py"), str(work)]
    subprocess.run(command, env=variables, check=True, stdout=2)
    return json.loads(out.read_text())


def make(folder: Path) -> str:
    """Python of a new environment with TRL in it."""
    python = str(folder / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = ["trl>=1.16", "peft", "torch", "transformers"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=2)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.beside_trl")
    parser.add_argument("--trl", metavar="PYTHON", help="a Python that has TRL")
    parser.add_argument("--make", metavar="FOLDER", type=Path, help="make an environment with TRL in this new folder")
    parser.add_argument("--pairs", default=os.environ.get("HH_RLHF_FILE", "sample"), help="pairs in Anthropic's format")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, the first of which does not count")
    asked = parser.parse_args()
    if not asked.trl and not asked.make:
        parser.error("name TRL's Python, or a folder to make its environment in")
    trl = asked.trl or make(asked.make)
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for the forkserver
    os.environ["OMP_NUM_THREADS"] = "1"
    missed = 0
    with tempfile.TemporaryDirectory(prefix="bench-trl-") as folder:
        for what, figure, bar, good in compare(Bench(Path(folder), asked.pairs), trl, asked.steps):
            missed += not good
            print(f"{what:52} {figure:>42}   {bar}{'' if good else '   MISSED'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
