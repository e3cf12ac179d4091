"""Training: this launcher and NeMo-Aligner's own DPOTrainer as it comes, side by side, in one run.

    make bench   or   python -m tests.benchmarks.training [--pairs hh.jsonl.gz] [--parts tokens equal faster packing]

Same weights, rows, order and seed, fp32 on the CPU, no dropout. `--pairs` are pairs in Anthropic's format (HH_RLHF_FILE
where it is set, else the project's own sample, which is short and even, so that the bars of tokens and time are not
held against it). It takes some 30 minutes on two idle cores. Exit code 1 if a bar is missed. Seconds are CPU seconds,
but for those of packing.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import flops
from tests.benchmarks import training_parts as parts
from tests.integration.conftest import REPOSITORY, Ranks, Trial
from tests.integration.minimal_trial import write_trial
from tests.integration.stock import stock

FEWER_TOKENS = {"cut": {8: 3.0, 64: 5.0}, "shared": {8: 6.0, 64: 9.5}}
SWEEP = 3  # betas
WITHIN = 1e-5
# A difference of rounding in one step's weights is there in all steps that follow. model=tiny does not need the leave.
AT_EVERY_STEP, A_STEP = f"<= {WITHIN:g} at every step", f"<= n x {WITHIN:g} at step n"
REFERENCES: dict[str, dict[str, Any]] = {"computed": {"compute__cache_reference": False}, "cached": {}, "found": {}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "two sequences a pair": {"compute__share_prompt": False},
    "a row a pair": {"compute__share_prompt": True},
    "rows of 512": {"compute__share_prompt": True, "compute__positions_per_micro_batch": 512},
}
#: By precision: how many times faster a step has to be than stock's, and what share of its time three betas may take.
FASTER, LESS_TIME = {"bf16": 3.0, "32": 2.7}, {"bf16": 0.27, "32": 0.31}
PARTS = ("reference", "step", "positions")
WHOLE_SET = 160_800  # pairs of HH-RLHF
STEPS = {"tiny": 50, "smollm2_135m": 3}
# Positions that cutting saves vary with the pairs: 1.77 times fewer on average; in nine of ten draws 1.54 to 2.03 for
# three steps, 1.61 to 1.94 for six.
TIMED = 6
COMPARED = ("train/loss", "train/rewards_chosen_mean", "train/rewards_rejected_mean", "val/loss")

Line = tuple[str, str, str, bool]
"""What, figure, bar, whether it is reached."""


class Bench:
    """Its folder, its pairs, and how trials are written and run."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.source = source
        self.train = Ranks()

    def pairs(self, most_tokens: int) -> dict[str, Path]:
        """Files of pairs of up to so many tokens."""
        out = self.folder / f"pairs_{most_tokens}"
        if not out.exists():
            command = [sys.executable, "data_prep/prepare_data.py", self.source, "--out", str(out)]
            command += ["--tokenizer", str(nemo("smollm2_135m")), "--max-tokens", str(most_tokens)]
            subprocess.run([*command, "--validation", "32", "--test", "32"], cwd=REPOSITORY, check=True, stdout=2)
        return {split: out / f"{split}.jsonl" for split in parts.PREPARED}

    def line(self, what: str, figure: str, bar: str, good: bool) -> Line:
        """One that a bar is held against, but for the sample's pairs, which have hardly any padding."""
        return (what, figure, "", True) if self.source == "sample" else (what, figure, bar, good)

    def trial(self, name: str, model: str, most_tokens: int, **changes: Any) -> Path:
        keys = {
            "trainer.dpo.max_steps": STEPS[model],
            "trainer.dpo.val_check_interval": STEPS[model],
            "trainer.dpo.save_interval": STEPS[model],
            "trainer.dpo.limit_val_batches": 1,
            "model.micro_batch_size": 1,
            "model.dpo.log_prob_forward_micro_batch_size": 1,
            "model.encoder_seq_length": most_tokens,
            "model.data.seq_length": most_tokens,
            "evaluation.kl_pairs": 0,
            "evaluation.samples": 0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        folder = self.folder / f"{model}_{name}"
        return write_trial(folder, model, nemo(model), self.pairs(most_tokens), keys)


def nemo(model: str) -> Path:
    return REPOSITORY / "models" / f"{model}.nemo"


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


def equal(bench: Bench) -> Iterator[Line]:
    """Losses, rewards and trained weights, against stock."""
    for ranks in (1, 2):
        yield from _equal_tiny(bench, ranks)
    yield from _equal_smollm2(bench)


def _equal_tiny(bench: Bench, ranks: int) -> Iterator[Line]:
    keys = {"trainer__devices": ranks, "model__global_batch_size": 4}
    reference = _run(bench, bench.trial(f"stock_{ranks}", "tiny", 512, **keys), ranks, stock)
    on = f"{ranks} rank{'s' * (ranks > 1)}"
    for place, (layout, keys_of_layout) in enumerate(LAYOUTS.items()):
        for name, way in REFERENCES.items():
            ours = _run(
                bench, bench.trial(f"{place}_{name}_{ranks}", "tiny", 512, **keys, **keys_of_layout, **way), ranks
            )
            yield _difference(f"tiny, {layout}, reference {name}, {on}", reference, ours, AT_EVERY_STEP)
        folder = bench.trial(f"{place}_resumed_{ranks}", "tiny", 512, **keys, **keys_of_layout)
        stopped = _run(bench, folder, ranks, parts.stop_in_the_middle, done=False)
        assert max(stopped.values("train/loss")) == parts.HALF
        resumed = _run(bench, folder, ranks)
        yield _difference(f"tiny, {layout}, resumed at {parts.HALF}, {on}", reference, resumed, AT_EVERY_STEP)


def _equal_smollm2(bench: Bench) -> Iterator[Line]:
    def trial(name: str, **way: Any) -> Path:
        return bench.trial(name, "smollm2_135m", 256, model__global_batch_size=8, **way)

    # How far rounding alone goes: the same trainer, whose batches are padded a little further.
    further = trial("padded", model__data__pad_length_to_multiple_of=64)
    reference, padded = _run_two(bench, (trial("stock"), parts.stock_with_peak), (further, stock))
    what, figures, _, _ = _difference("smollm2_135m, stock padded to 64", reference, padded, A_STEP)
    yield what, figures, "stock beside itself", True
    for place, (layout, keys) in enumerate(LAYOUTS.items()):
        ours = _run(bench, trial(f"{place}_cached", **keys), 1, parts.keep_peak)
        yield _difference(f"smollm2_135m, {layout}", reference, ours, A_STEP)
        yield _memory(layout, reference, ours)


def _run_two(bench: Bench, *trials: tuple[Path, Any]) -> list[Trial]:
    """At once, of one rank each."""
    say(" and ".join(folder.name for folder, _ in trials))
    started = [(folder, bench.train.start(folder, 1, change)) for folder, change in trials]
    done = [bench.train.wait(folder, processes) for folder, processes in started]
    for trial in done:
        assert trial.result and not any(trial.exit_codes), trial.said()
    return done


def _run(bench: Bench, folder: Path, ranks: int, change: Any = None, done: bool = True) -> Trial:
    say(folder.name)
    trial = bench.train(folder, ranks, change)
    assert not any(trial.exit_codes), trial.said()
    assert (folder / "result.json").exists() == done, trial.said()
    return trial


def _difference(what: str, stock_: Trial, ours: Trial, rule: str) -> Line:
    """The largest difference of each kind, and the first step at which it stands; weights are compared at the end."""
    from tests.integration.lora_reference import read_adapters

    apart: dict[str, dict[int, float]] = {"loss": {}, "rewards": {}, "weights": {}}
    for key in COMPARED:
        theirs, values, kind = stock_.values(key), ours.values(key), "rewards" if "rewards" in key else "loss"
        assert theirs.keys() <= values.keys(), key
        for step, value in theirs.items():  # rewards are sums over a response, of tens of nats: relative where above 1
            assert math.isfinite(value) and math.isfinite(values[step]), (key, step)
            size = max(1.0, abs(value)) if kind == "rewards" else 1.0
            apart[kind][step] = max(apart[kind].get(step, 0.0), abs(value - values[step]) / size)
    before, after = (read_adapters(Path(trial.result["nemo"])) for trial in (stock_, ours))
    assert before.keys() == after.keys()
    last = max(stock_.values("train/loss"))
    apart["weights"][last] = max(float((before[name] - after[name]).abs().max()) for name in before)
    figures, good = judge(apart, rule)
    return f"equal: {what}, {last} steps", figures, rule, good


def judge(apart: dict[str, dict[int, float]], rule: str) -> tuple[str, bool]:
    """Of differences by kind and step: the largest of each kind in words, and whether all of them keep the rule."""
    good = all(
        most <= WITHIN * (max(1, step) if rule == A_STEP else 1) for of in apart.values() for step, most in of.items()
    )
    largest = {kind: max(of, key=lambda step: (of[step], -step)) for kind, of in apart.items()}
    return ", ".join(f"{kind} {apart[kind][step]:.1e} at {step}" for kind, step in largest.items()), good


def _memory(name: str, stock_: Trial, ours: Trial) -> Line:
    theirs, own = (int((trial.folder / "log" / "peak").read_text()) / 1e6 for trial in (stock_, ours))
    return f"peak memory, {name}", f"{own:.2f} GB, stock {theirs:.2f}", "<= stock's", own <= theirs


def faster(bench: Bench) -> Iterator[Line]:
    """CPU seconds of a step of SmolLM2-135M, 8 pairs of up to 256 tokens, by precision."""
    for precision in FASTER:
        yield from _faster(bench, precision)


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
    _run_two(bench, *((folder, parts.half_of_the_cores) for folder in pair))
    together = time.monotonic() - began
    alone = []
    for name in ("alone_0", "alone_1"):
        folder = trial(name)
        began = time.monotonic()
        _run(bench, folder, 1, parts.all_cores)
        alone.append(time.monotonic() - began)
    yield "two trials side by side", f"{together:.0f} s", "", True
    yield "one after the other, all cores each", " + ".join(f"{seconds:.0f} s" for seconds in alone), "", True
    ratio = sum(alone) / together
    yield "two trials, side by side", f"{ratio:.2f} times faster", ">= 1", ratio >= 1


def say(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    measures = {"tokens": tokens, "equal": equal, "faster": faster, "packing": packing}
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
