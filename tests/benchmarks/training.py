"""Training: this launcher and NeMo-Aligner's own DPOTrainer as it comes, side by side, in one run.

    make bench   or   python -m tests.benchmarks.training [--pairs hh.jsonl.gz] [--parts tokens faster_fp32 ...]

Same weights, rows, order and seed, fp32 on the CPU, no dropout. `--pairs` are pairs in Anthropic's format (HH_RLHF_FILE
where it is set, else the project's own sample, which is short and even, so that the bars of tokens and time are not
held against it). It takes some 30 minutes on two idle cores. Exit code 1 if a bar is missed. Seconds are CPU seconds,
but for those of packing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import equality, flops
from tests.benchmarks import training_parts as parts
from tests.benchmarks.bench import Bench, Line, say
from tests.integration.conftest import REPOSITORY

FEWER_TOKENS = {"cut": {8: 3.0, 64: 5.0}, "shared": {8: 6.0, 64: 9.5}}
SWEEP = 3  # betas
#: By precision: how many times faster a step has to be than stock's, and what share of its time three betas may take.
FASTER, LESS_TIME = {"bf16": 3.0, "32": 2.7}, {"bf16": 0.27, "32": 0.31}
EQUAL = {
    f"equal_{measure.__name__}": measure
    for measure in (
        equality.tiny,
        equality.tiny_on_two_ranks,
        equality.smollm2,
        equality.tiny_in_bf16,
        equality.smollm2_in_bf16,
    )
}
PARTS = ("reference", "step", "positions")
WHOLE_SET = 160_800  # pairs of HH-RLHF
# Positions that cutting saves vary with the pairs: 1.77 times fewer on average; in nine of ten draws 1.54 to 2.03 for
# three steps, 1.61 to 1.94 for six.
TIMED = 6


def tokens(bench: Bench) -> Iterator[Line]:
    """Positions computed, reference passes of a sweep included."""
    longest = 4096  # as they are
    every = bench.folder / "every.jsonl"
    every.write_text("".join(path.read_text() for path in bench.pairs(longest).values()))
    keys = {"compute__cache_reference": False, "model__data__data_prefix__train": [str(every)]}
    found = parts.in_a_rank(parts.count, bench.trial("count", "smollm2_135m", longest, **keys))
    yield "pairs", f"{found['pairs']}", "", True
    for way, bars in FEWER_TOKENS.items():
        for share, bar in bars.items():
            stock_, ours = found["stock"][str(share)], found[way][str(share)]
            yield f"positions, {way}, {share} pairs a rank", f"{stock_ / ours:.2f} times fewer", "", True
            # Policy and reference a trial; policy a trial, reference once.
            ratio = 2 * SWEEP * stock_ / ((SWEEP + 1) * ours)
            what = f"positions of {SWEEP} betas, {way}, {share} pairs a rank"
            yield bench.line(what, f"{ratio:.2f} times fewer", f">= {bar:g}", ratio >= bar)
    for share in found["widths"]:
        theirs = sum((flops.of_sequences(2 * int(share), width) for width in found["widths"][share]), flops.Work())
        rows = flops.of_rows(found["lengths"][share], found["labels"][share])
        ratio = SWEEP * flops.of_pass(theirs, train=False) + SWEEP * flops.of_pass(theirs, train=True)
        ratio /= flops.of_pass(rows, train=False) + SWEEP * flops.of_pass(rows, train=True)
        yield f"FLOPs of {SWEEP} betas at Llama-3-8B's shape, shared, {share}", f"{ratio:.2f} times fewer", "", True
    share = found["labelled"] / found["tokens"]
    yield "positions that need logits", f"{share:.0%} of a pair's own", "", True
    size = (4 * found["labelled"] / found["pairs"] + 32) * WHOLE_SET / 1e6
    yield f"cache of {WHOLE_SET:,} such pairs", f"{size:.0f} MB", "extrapolated", True


def faster_bf16(bench: Bench) -> Iterator[Line]:
    """CPU seconds of a step of SmolLM2-135M, 8 pairs of up to 256 tokens."""
    yield from _faster(bench, "bf16")


def faster_fp32(bench: Bench) -> Iterator[Line]:
    yield from _faster(bench, "32")


def _faster(bench: Bench, precision: str) -> Iterator[Line]:
    say(f"smollm2_135m in {precision}: {TIMED} steps, each in {len(parts.WAYS)} ways")
    keys: dict[str, Any] = {
        f"compute__{key}": False for key in ("cut_padding", "skip_prompt_logits", "cache_reference")
    }
    keys |= {"compute__share_prompt": False, "trainer__precision": precision, "trainer__dpo__max_steps": TIMED}
    taken = parts.in_a_rank(parts.time_steps, bench.trial(f"timed_{precision}", "smollm2_135m", 256, **keys))
    sums = {way: {part: sum(one[part] for one in taken if one["way"] == way) for part in PARTS} for way in parts.WAYS}
    steps = len(taken) // len(sums)
    stock_ = sums["stock"]
    whole = SWEEP * (stock_["step"] + stock_["reference"])
    for way, spent in sums.items():
        fewer = f"{stock_['positions'] / spent['positions']:.2f} times fewer positions"
        each = f"{spent['step'] / steps:.1f} s + reference {spent['reference'] / steps:.1f} s"
        yield f"{precision}: a step, {way}", each, fewer, True
        if way == "stock":
            continue
        ratio = stock_["step"] / spent["step"]
        share = (SWEEP * spent["step"] + spent["reference"]) / whole
        lines = (
            (f"{precision}: training step, {way}", f"{ratio:.2f} times faster", f">= {FASTER[precision]:g}",
             ratio >= FASTER[precision]),
            (f"{precision}: {SWEEP} betas and their reference, {way}", f"{share:.3f} of stock's CPU time",
             f"<= {LESS_TIME[precision]:g}", share <= LESS_TIME[precision]),
        )  # fmt: skip
        for what, figure, bar, good in lines:  # the bars are for the way that is the default
            yield bench.line(what, figure, bar, good) if way == "packed" else (what, figure, "", True)
    hours = sums["packed"]["reference"] / steps / 8 * WHOLE_SET / 3600
    yield (
        f"{precision}: reference stage of {WHOLE_SET:,} such pairs",
        f"{hours:.0f} h of one such core",
        "extrapolated",
        True,
    )


def packing(bench: Bench) -> Iterator[Line]:
    """Seconds of two trials of SmolLM2-135M: side by side with half of the cores each, and one after the other."""

    def trial(name: str) -> Path:  # the reference cached, the second would have less to do than the first
        return bench.trial(name, "smollm2_135m", 256, compute__cache_reference=False, trainer__dpo__max_steps=2)

    pair = trial("side_0"), trial("side_1")
    began = time.monotonic()
    bench.run_two(*((folder, parts.half_of_the_cores) for folder in pair))
    together = time.monotonic() - began
    alone = []
    for name in ("alone_0", "alone_1"):
        folder = trial(name)
        began = time.monotonic()
        bench.run(folder, 1, parts.all_cores)
        alone.append(time.monotonic() - began)
    yield "two trials side by side", f"{together:.0f} s", "", True
    yield "one after the other, all cores each", " + ".join(f"{seconds:.0f} s" for seconds in alone), "", True
    ratio = sum(alone) / together
    yield "two trials, side by side", f"{ratio:.2f} times faster", ">= 1", ratio >= 1


def main(arguments: list[str] | None = None) -> int:
    measures = {"tokens": tokens, **EQUAL, "faster_bf16": faster_bf16, "faster_fp32": faster_fp32, "packing": packing}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=(__doc__ or "")[:80])
    parser.add_argument("--pairs", default=os.environ.get("HH_RLHF_FILE", "sample"), help="pairs in Anthropic's format")
    parser.add_argument("--parts", nargs="+", choices=measures, default=list(measures))
    asked = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for the forkserver
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, pairs of {Path(asked.pairs).name}", flush=True)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        bench = Bench(Path(folder), asked.pairs)
        for part in asked.parts:
            for what, figure, bar, good in measures[part](bench):
                missed += not good
                print(f"{what:52} {figure:>42}   {bar}{'' if good else '   MISSED'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
