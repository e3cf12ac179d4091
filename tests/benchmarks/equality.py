"""Losses, rewards and adapters of every step, and peak memory, against NeMo-Aligner's own trainer.

In fp32 they are equal but for rounding. In bf16 rounding is what there is to compare with: NeMo-Aligner's own trainer
beside itself, with batches padded further (which changes not a bit on a CPU, since padding stands on the right), and
with the same pairs in larger micro batches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from tests.benchmarks import training_parts as parts
from tests.benchmarks.bench import LAYOUTS, REFERENCES, Bench, Line
from tests.integration.conftest import Trial
from tests.integration.stock import stock

WITHIN = 1e-5
AT_EVERY_STEP = f"<= {WITHIN:g} at every step"
#: SmolLM2's rounding alone makes more than WITHIN: Adam's first steps have the size of the learning rate whatever the
#: gradient's, so that an element whose gradient is nearly 0 takes its sign from rounding. The measure is therefore how
#: far NeMo-Aligner's own trainer is from itself, its batches padded further; ours may be twice as far.
AS_NOISY = 2.0
COMPARED = ("train/loss", "train/rewards_chosen_mean", "train/rewards_rejected_mean", "val/loss")
#: What changes how NeMo-Aligner's own trainer rounds, and nothing else.
ROUNDED: dict[str, dict[str, Any]] = {
    **{f"padded to {multiple}": {"model__data__pad_length_to_multiple_of": multiple} for multiple in (64, 128)},
    **{
        f"micro batches of {size}": {
            "model__micro_batch_size": size,
            "model__dpo__log_prob_forward_micro_batch_size": size,
        }
        for size in (2, 4)
    },
}

Apart = dict[str, dict[int, float]]
"""By kind (loss, rewards, adapters) and step, how far two trials are from each other."""


def tiny(bench: Bench) -> Iterator[Line]:
    """fp32, by layout and reference, and resumed in the middle."""
    yield from _tiny(bench, 1)


def tiny_on_two_ranks(bench: Bench) -> Iterator[Line]:
    yield from _tiny(bench, 2)


def _tiny(bench: Bench, ranks: int) -> Iterator[Line]:
    keys = {"trainer__devices": ranks, "model__global_batch_size": 4}
    reference = bench.run(bench.trial(f"stock_{ranks}", "tiny", 512, **keys), ranks, stock)
    on = f"{ranks} rank{'s' * (ranks > 1)}"
    for place, (layout, keys_of_layout) in enumerate(LAYOUTS.items()):
        every = {**keys, **keys_of_layout}
        for name, way in REFERENCES.items():
            ours = bench.run(bench.trial(f"{place}_{name}_{ranks}", "tiny", 512, **every, **way), ranks)
            yield _line(f"tiny, {layout}, reference {name}, {on}", reference, ours)
        folder = bench.trial(f"{place}_resumed_{ranks}", "tiny", 512, **every)
        stopped = bench.run(folder, ranks, parts.stop_in_the_middle, done=False)
        assert max(stopped.values("train/loss")) == parts.HALF
        resumed = bench.run(folder, ranks)
        yield _line(f"tiny, {layout}, resumed at {parts.HALF}, {on}", reference, resumed)


def smollm2(bench: Bench) -> Iterator[Line]:
    """fp32, by layout, with peak memory."""

    def trial(name: str, change: Any = None, **keys: Any) -> Trial:
        return bench.run(bench.trial(name, "smollm2_135m", 256, model__global_batch_size=8, **keys), 1, change)

    reference = trial("stock", stock)
    padded = trial("padded", stock, model__data__pad_length_to_multiple_of=64)
    own = _largest(apart(reference, padded))
    yield "equal: smollm2_135m, stock beside stock padded to 64", _in_words(own), "", True
    for place, (layout, keys) in enumerate(LAYOUTS.items()):
        ours = trial(f"{place}_cached", **keys)
        largest = _largest(apart(reference, ours))
        good = all(largest[kind] <= max(WITHIN, AS_NOISY * own[kind]) for kind in KINDS)
        bar = f"<= {WITHIN:g}, or {AS_NOISY:g} x stock's own"
        yield f"equal: smollm2_135m, {layout}, 3 steps", _in_words(largest), bar, good
        yield _memory(layout, reference, ours)


def tiny_in_bf16(bench: Bench) -> Iterator[Line]:
    """By layout, beside the spread of NeMo-Aligner's own trainer."""
    yield from _in_bf16(bench, "tiny", 512, 4)


def smollm2_in_bf16(bench: Bench) -> Iterator[Line]:
    """By layout, beside the spread of NeMo-Aligner's own trainer."""
    yield from _in_bf16(bench, "smollm2_135m", 256, 8)


def _in_bf16(bench: Bench, model: str, most_tokens: int, batch: int) -> Iterator[Line]:
    def trial(name: str, change: Any = None, **keys: Any) -> Trial:
        keys = {"model__global_batch_size": batch, "trainer__precision": "bf16", **keys}
        return bench.run(bench.trial(f"bf16_{name}", model, most_tokens, **keys), 1, change)

    exact, reference = trial("exact", stock, trainer__precision="32"), trial("stock", stock)
    own = [reference]
    for name, keys in ROUNDED.items():
        own.append(trial(name.replace(" ", "_"), parts.stock_in_the_same_order, **keys))
        yield f"bf16: {model}, stock beside stock {name}", _in_words(_largest(apart(reference, own[-1]))), "", True
    each = [_largest(apart(*two)) for two in itertools.combinations(own, 2)]
    spread = {kind: max(largest[kind] for largest in each) for kind in KINDS}
    yield f"bf16: {model}, the largest of any two of stock's own", _in_words(spread), "", True
    yield f"bf16: {model}, stock beside itself in fp32", _in_words(_largest(apart(exact, reference))), "", True
    for place, (layout, keys) in enumerate(LAYOUTS.items()):
        ours = trial(f"{place}", **keys)
        largest = _largest(apart(reference, ours))
        good = all(largest[kind] <= spread[kind] for kind in KINDS)
        yield f"bf16: {model}, {layout}, beside stock", _in_words(largest), "<= stock beside itself", good
        yield f"bf16: {model}, {layout}, beside stock in fp32", _in_words(_largest(apart(exact, ours))), "", True


KINDS = ("loss", "rewards", "adapters")


def _largest(found: Apart) -> dict[str, float]:
    return {kind: max(found[kind].values()) for kind in KINDS}


def _in_words(largest: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value:.1e}" for kind, value in largest.items())


def _line(what: str, stock_: Trial, ours: Trial) -> Line:
    found = apart(stock_, ours)
    figures, good = judge(found)
    return f"equal: {what}, {max(found['adapters'])} steps", figures, AT_EVERY_STEP, good


def apart(stock_: Trial, ours: Trial) -> Apart:
    """How far they are apart in each kind at each step; 0 is the validation before the first."""
    found: Apart = {kind: {} for kind in KINDS}
    for key in COMPARED:
        theirs, values, kind = stock_.values(key), ours.values(key), "rewards" if "rewards" in key else "loss"
        assert theirs.keys() <= values.keys(), key
        for step, value in theirs.items():  # rewards are sums over a response, of tens of nats: relative where above 1
            assert math.isfinite(value) and math.isfinite(values[step]), (key, step)
            size = max(1.0, abs(value)) if kind == "rewards" else 1.0
            found[kind][step] = max(found[kind].get(step, 0.0), abs(value - values[step]) / size)
    for step in range(1, max(stock_.values("train/loss")) + 1):
        before, after = (torch.load(trial.folder / f"{step}.adapters") for trial in (stock_, ours))
        assert before.keys() == after.keys() and before
        assert all(weight.isfinite().all() for weights in (before, after) for weight in weights.values()), step
        found["adapters"][step] = max(float((before[name] - after[name]).abs().max()) for name in before)
    return found


def judge(apart: Apart) -> tuple[str, bool]:
    """Of differences by kind and step: the largest of each kind in words, and whether all of them are within WITHIN."""
    good = all(most <= WITHIN for of in apart.values() for most in of.values())
    largest = {kind: max(of, key=lambda step: (of[step], -step)) for kind, of in apart.items()}
    return ", ".join(f"{kind} {apart[kind][step]:.1e} at {step}" for kind, step in largest.items()), good


def _memory(name: str, stock_: Trial, ours: Trial) -> Line:
    theirs, own = (int((trial.folder / "peak").read_text()) / 1e6 for trial in (stock_, ours))
    return f"peak memory, {name}", f"{own:.2f} GB, stock {theirs:.2f}", "<= stock's", own <= theirs
