"""What a sweep costs, from the lengths of its pairs: against distributions that can be worked out by hand or drawn."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs.lengths import Lengths
from launcher import units
from launcher.check import cost, pair_lengths, preflight, throughput
from launcher.check.cost import Batching
from launcher.check.pair_lengths import PairLengths
from launcher.compose.trials import PlannedTrial
from launcher.nemo.base_model import BaseModel
from launcher.trial_config.config import TrialConfig
from tests.unit.llama import LLAMA3_8B, write_described

BASE = BaseModel(Path("llama3_8b.nemo"), LLAMA3_8B, 128256, {})
PIPED = ("model.pipeline_model_parallel_size=2", "trainer.devices=2")
STOCK, OURS = Batching(cut=False, reference_once=False), Batching(cut=True, reference_once=True)


def record(folder: Path, unit: str = "tokens", **splits: list[int]) -> None:
    """dataset.json, as prepare_data.py writes it, for files that are there."""
    lengths: dict[str, Any] = {"unit": unit}
    for split, each in splits.items():
        counted = Lengths()
        for length in each:
            counted.add(length)
        lengths[split] = counted.facts()
    files = {f"{split}.jsonl": {"bytes": (folder / f"{split}.jsonl").stat().st_size} for split in splits}
    rows = {split: len(each) for split, each in splits.items()}
    (folder / "dataset.json").write_text(json.dumps({"rows": rows, "files": files, "lengths": lengths}))


@pytest.fixture
def trial(composed: Any, workspace: Path) -> Any:
    """trial(*overrides) -> a checked trial of 16 training and 8 held-out pairs, 100 and 64 tokens long."""
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)

    def build(*overrides: str) -> dict[str, Any]:
        config, found = composed("model=tiny", "trainer.dpo.max_steps=-1", *overrides)
        assert found == []
        return config

    return build


def drawn_lengths(folder: Path, drawn: random.Random) -> tuple[list[int], PairLengths]:
    """Lengths as skewed as those of real pairs, and what a record of them tells."""
    each = [int(drawn.lognormvariate(5, 0.7)) + 5 for _ in range(3000)]
    (folder / "train.jsonl").write_text("x")
    record(folder, train=each)
    lengths = pair_lengths.load(folder / "train.jsonl")
    assert lengths is not None and lengths.rows == 3000
    return each, lengths


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_expected_longest_of_a_batch(tmp_path: Path, count: int) -> None:
    drawn = random.Random(7)
    each, lengths = drawn_lengths(tmp_path, drawn)
    real = statistics.mean(max(drawn.choices(each, k=count)) for _ in range(4000))
    assert lengths.longest_of(count) == pytest.approx(real, rel=0.06)
    assert lengths.longest_of(10**6) <= max(each)


@pytest.mark.parametrize("together", [1, 2, 4, 16])
def test_expected_padding_of_sorted_shares(tmp_path: Path, together: int) -> None:
    drawn = random.Random(8)
    each, lengths = drawn_lengths(tmp_path, drawn)
    shares = [sorted(drawn.choices(each, k=16)) for _ in range(3000)]
    real = statistics.mean(share[place] for share in shares for place in range(together - 1, 16, together))
    assert lengths.padded(together, 16) == pytest.approx(real, rel=0.06)


def test_no_lengths_without_a_record_or_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("x")
    assert pair_lengths.load(path) is None
    record(tmp_path, train=[10, 20])
    assert pair_lengths.load(path) is not None
    path.write_text("xy")
    assert pair_lengths.load(path) is None
    for text in ("{", "[]", '{"rows": {"train": 1}, "files": {"train.jsonl": {"bytes": 2}}, "lengths": {}}'):
        (tmp_path / "dataset.json").write_text(text)
        assert pair_lengths.load(path) is None


def test_characters_are_taken_for_a_quarter_of_a_token(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("x")
    record(tmp_path, unit="characters", train=[400] * 10)
    lengths = pair_lengths.load(tmp_path / "train.jsonl")
    assert lengths is not None and not lengths.counted
    assert lengths.longest_of(1) == 100


def test_positions_of_pairs_that_are_all_alike(trial: Any) -> None:
    """4 steps of 4 pairs, validated twice on 8: nothing to cut, so only the reference tells the ways apart."""
    config = trial("trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=2")
    stock = cost.estimate(config, BASE, Batching(False, False), trials=3)
    ours = cost.estimate(config, BASE, Batching(True, True), trials=3)
    assert stock is not None and ours is not None
    for found in (stock, ours):
        assert found.positions.training == pytest.approx(2 * 16 * 100)
        assert found.positions.validation == pytest.approx(2 * 2 * 8 * 64)
        assert found.positions.padding == pytest.approx(0)
    assert stock.positions.reference == pytest.approx(2 * 16 * 100 + 2 * 2 * 8 * 64)
    assert ours.positions.reference == pytest.approx(2 * 16 * 100 + 2 * 8 * 64)  # a held-out pair once
    # a forward pass is half a LoRA training step's work
    assert stock.whole_work == pytest.approx(3 * (3200 + 2048 / 2 + 5248 / 2))
    assert ours.whole_work == pytest.approx(3 * (3200 + 2048 / 2) + 4224 / 2)


def test_cutting_takes_padding_away(trial: Any, workspace: Path) -> None:
    record(workspace / "data" / "sample", train=[20] * 12 + [200] * 4, validation=[64] * 8)
    config = trial()
    stock, ours = (cost.estimate(config, BASE, way) for way in (STOCK, OURS))
    assert stock is not None and ours is not None
    assert ours.positions.padding == pytest.approx(0)
    assert stock.positions.padding > 0.3
    # the longest of 4 is one of the long ones with 1 - 0.75^4
    assert stock.positions.training / 32 == pytest.approx(20 + 180 * (1 - 0.75**4), rel=0.15)
    piped = trial(*PIPED)
    pipes = cost.estimate(piped, BASE, OURS)
    assert pipes is not None and pipes.positions.training == pytest.approx(stock.positions.training)
    long = cost.estimate(trial("trainer.dpo.max_epochs=3", *PIPED), BASE, OURS)
    assert long is not None and long.positions.reference == pytest.approx(
        pipes.positions.reference
    )  # kept all the same


def test_flops_of_llama_3_8b(trial: Any) -> None:
    found = cost.estimate(trial(), BASE, OURS, trials=2)
    assert found is not None and found.flops is not None
    assert found.flops == pytest.approx(2 * 2 * (8_030_261_248 - 128_256 * 4096) * found.whole_work, rel=1e-6)
    recomputed = cost.estimate(trial("++model.activations_checkpoint_granularity=full"), BASE, OURS, trials=2)
    assert recomputed is not None and recomputed.passes == 3


def test_words_of_a_cost(trial: Any) -> None:
    found = cost.estimate(trial(), BASE, OURS, trials=3)
    assert found is not None
    assert cost.describe(found, None, "").startswith("3.2 k tokens per trial, 0% padding; reference once for all; ")
    said = cost.describe(found, 2.0, "as entered")
    assert f"{units.estimate(cost.seconds(found, 2.0))} per trial" in said and "rank-hours in all (as entered)" in said
    assert [units.estimate(value) for value in (40, 700, 12000)] == ["40 s", "12 min", "3 h 20 min"]


def slow_cluster(composed: Any, *overrides: str) -> tuple[Any, list[Any]]:
    config, found = composed("cluster=slurm", "model=tiny", "data=sample", "trainer.dpo.max_steps=-1", *overrides)
    assert found == []
    written = [f for f in preflight.warnings([PlannedTrial([], config)], None) if f.where == "cluster.time"]
    return config, written


def test_a_time_limit_that_is_too_short_is_warned_of(composed: Any, workspace: Path) -> None:
    write_described(workspace / "models" / "tiny.nemo", LLAMA3_8B, 128256)
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)
    entered = "cluster.tokens_per_second=1"
    config, (warning,) = slow_cluster(composed, "cluster.time=40", entered)
    needed = cost.estimate(config, None, cost.batching(config))
    assert needed is not None and units.estimate(cost.seconds(needed, 1.0)) in warning.why
    assert entered in warning.why
    hours = int(warning.remedy.split()[3])
    assert slow_cluster(composed, f"cluster.time={hours}", entered)[1] == []
    assert slow_cluster(composed, "cluster.time=1-00:00:00")[1] == []


@pytest.mark.parametrize("epochs", [(3000, 1), (1, 3000)])
def test_a_time_limit_is_held_against_the_slowest_trial(
    composed: Any, workspace: Path, epochs: tuple[int, int]
) -> None:
    write_described(workspace / "models" / "tiny.nemo", LLAMA3_8B, 128256)
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)
    words = ("cluster=slurm", "model=tiny", "data=sample", "trainer.dpo.max_steps=-1", "cluster.tokens_per_second=1")
    trials = [PlannedTrial([], composed(*words, f"trainer.dpo.max_epochs={number}")[0]) for number in epochs]
    (warning,) = [f for f in preflight.warnings(trials, None) if f.where == "cluster.time"]
    assert int(warning.remedy.split()[3]) > 1440


def test_without_a_speed_only_the_impossible_is_warned_of(composed: Any, workspace: Path) -> None:
    write_described(workspace / "models" / "tiny.nemo", LLAMA3_8B, 128256)
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)
    assert slow_cluster(composed, "cluster.time=1")[1] == []
    (warning,) = slow_cluster(composed, "cluster.time=1", "trainer.dpo.max_epochs=100000")[1]
    assert "at least" in warning.why and "at its peak" in warning.why


def test_speed_is_that_of_the_last_trial_like_it(trial: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = trial()
    assert throughput.known(config) is None
    phases = {"starting": 5.0, "reference": 0.5, "training": 30.0, "validating": 10.0, "evaluating": 2.0}
    done = finished(workspace, config, phases)
    speed = throughput.known(config)
    computed = cost.estimate(config, None, cost.batching(config))
    assert speed is not None and computed is not None
    # The reference came from the cache: its half second says nothing of the work that the next trial may have to do.
    assert speed.positions == pytest.approx(computed.policy_work / 40)
    assert speed.overhead == 7.0
    assert cost.seconds(computed, speed.positions) == pytest.approx(40 * computed.work / computed.policy_work)
    assert throughput.known(trial("model.micro_batch_size=2")) is None
    assert throughput.known(trial("cluster.tokens_per_second=9")).positions == 9  # type: ignore[union-attr]
    (done / "result.json").write_text("{}")
    assert throughput.known(config) is None


def test_speed_where_the_reference_is_computed_with_each_batch(trial: Any, workspace: Path) -> None:
    """Then it is done in the phases of the policy, and none is called reference."""
    config = trial("trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=2", "compute.cache_reference=false")
    finished(workspace, config, {"starting": 5.0, "training": 30.0, "validating": 10.0})
    computed, speed = cost.estimate(config, None), throughput.known(config)
    assert computed is not None and speed is not None
    assert computed.positions.reference == computed.positions.training + computed.positions.validation
    assert cost.seconds(computed, speed.positions) == pytest.approx(40)


@pytest.mark.parametrize(
    ("before", "now", "alike"),
    [
        (["cluster.gpus_per_node=a100:2"], ["cluster.gpus_per_node=a100:2"], True),
        (["cluster.gpus_per_node=a100:2"], ["cluster.gpus_per_node=h100:2"], False),
        (["cluster.gpus_per_node=null"], [], False),
        (["+cluster.sbatch.gres='gpu:h100:2'"], [], False),
        (["deterministic=true"], [], False),
        (["trainer.dpo.max_epochs=2"], [], True),
    ],
)
def test_a_speed_is_not_that_of_another_gpu(
    composed: Any, workspace: Path, before: list[str], now: list[str], alike: bool
) -> None:
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)
    words = ("cluster=slurm", "model=tiny", "data=sample", "trainer.dpo.max_steps=-1", "trainer.devices=2")
    finished(workspace, composed(*words, *before)[0], {"reference": 1.0, "training": 30.0, "validating": 10.0})
    assert (throughput.known(composed(*words, *now)[0]) is not None) == alike


def finished(workspace: Path, config: TrialConfig, phases: dict[str, float]) -> Path:
    """The folder of a trial that has finished, with the seconds of its phases."""
    done = workspace / "runs" / "dpo" / "one" / "0"
    done.mkdir(parents=True)
    (done.parent / "sweep.json").write_text("{}")
    (done / "config.yaml").write_text(json.dumps(config.plain))
    (done / "result.json").write_text(json.dumps({"phase_seconds": phases}))
    return done


ON_GPUS = ["cluster=slurm", "trainer.accelerator=auto"]


@pytest.mark.parametrize(
    ("overrides", "once"),
    [
        (ON_GPUS, True),
        ([*ON_GPUS, "model.micro_batch_size=2"], False),
        ([*ON_GPUS, "model.dpo.log_prob_forward_micro_batch_size=2"], False),
        ([*ON_GPUS, "compute.positions_per_micro_batch=512"], False),
        ([*ON_GPUS, "compute.positions_per_micro_batch=null"], True),
        ([*ON_GPUS, "model.micro_batch_size=2", "trainer.precision='32'"], True),
        ([*ON_GPUS, "model.micro_batch_size=2", "trainer.accelerator=cpu"], True),
        ([*ON_GPUS, "model.micro_batch_size=2", "cluster.gpus_per_node=null"], True),
        ([*ON_GPUS, "model.data.reset_attention_mask=true"], False),
        ([*ON_GPUS, "++model.hidden_dropout=0.1"], False),
        ([*ON_GPUS, "compute.cache_reference=false"], False),
        (["cluster=local", "model.micro_batch_size=2"], True),
        (["cluster=local", "model.micro_batch_size=2", "trainer.accelerator=gpu"], False),
    ],
)
def test_the_reference_is_not_once_where_the_ranks_do_not_keep_it(
    composed: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], once: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    record(workspace / "data" / "sample", train=[100] * 16, validation=[64] * 8)
    config, found = composed("model=tiny", "data=sample", *overrides)
    assert found == []
    computed = cost.estimate(config, BASE, trials=3)
    assert computed is not None and computed.reference_once == once
    assert ("reference once for all" if once else "reference in each trial") in cost.describe(computed, None, "")


def test_the_reference_is_not_once_on_this_machines_gpu_or_under_the_base_models_dropout(
    trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trial("model.micro_batch_size=2")
    for visible, once in (("", True), ("0", False)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert cost.batching(config).reference_once == once
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    noisy = BaseModel(BASE.path, {**LLAMA3_8B, "attention_dropout": 0.1}, 128256, {})
    assert not cost.batching(config, noisy).reference_once


def test_a_prompt_that_is_computed_once_is_counted_once(trial: Any, workspace: Path) -> None:
    """A pair of 100 tokens a side, of which the prompt is half; the rejected response half as long as the chosen."""
    sample = workspace / "data" / "sample"
    row = {"prompt": "p" * 50, "chosen_response": "c" * 50, "rejected_response": "r" * 25}
    for split, count in (("train", 16), ("validation", 8)):
        (sample / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * count)
    record(sample, train=[100] * 16, validation=[100] * 8)
    rows, sides = trial("trainer.accelerator=cpu"), trial("trainer.accelerator=cpu", "compute.share_prompt=false")
    found = [cost.estimate(config, BASE, cost.batching(config)) for config in (rows, sides)]
    assert found[0] is not None and found[1] is not None
    for name in ("training", "validation", "reference"):
        ratio = getattr(found[0].positions, name) / getattr(found[1].positions, name)
        assert ratio == pytest.approx(125 / 200, rel=0.01), name
    assert found[0].positions.padding == pytest.approx(0)
    assert not cost.batching(sides).rows
