"""What a step need not compute, left out: the numbers stay NeMo-Aligner's own, whatever becomes of the cache."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.integration.stock import stock

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

FIGURES = ("train/loss", "train/grad_norm", "train/rewards_chosen_mean", "train/rewards_rejected_mean", "val/loss")
PAIRS = 32  # 24 for training, 8 held out


@pytest.fixture
def new_trial(new_trial: Callable[..., Path]) -> Callable[..., Path]:
    """With two sequences a pair; test_shared_prompt.py has the other way."""

    def make(name: str = "0", **overrides: Any) -> Path:
        return new_trial(name, **{"compute__share_prompt": False, **overrides})

    return make


def same(ours: Any, stock: Any, within: float = 1e-5) -> None:
    """Figures of every step, and trained weights."""
    from tests.integration.lora_reference import read_adapters

    assert set(ours.exit_codes) == set(stock.exit_codes) == {0}, ours.said() + stock.said()
    for key in FIGURES:
        expected, values = stock.values(key), ours.values(key)  # the launcher also validates before the first step
        assert {step: values[step] for step in expected} == pytest.approx(expected, rel=within, abs=within), key
    before, after = (read_adapters(Path(trial.result["nemo"])) for trial in (stock, ours))
    apart = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert apart < within * ours.result["steps"]


def computed(trial: Any) -> int:
    """Pairs of which a trial has computed the reference log-probabilities before its first step."""
    found = re.findall(rf"reference: {PAIRS} pairs, (\d+) of them computed here", trial.said())
    return int(found[-1])


def parts(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache").rglob("*.part"))


def test_like_stock_with_a_computed_and_a_found_reference(train, new_trial, stock_trial):
    expected = stock_trial()
    first, second = train(new_trial("first")), train(new_trial("second"))
    plain = train(new_trial("plain", compute__cache_reference=False, compute__skip_prompt_logits=False))
    assert (computed(first), computed(second)) == (PAIRS, 0)
    for trial in (first, second, plain):
        same(trial, expected)
    assert {key: first.values(key) for key in FIGURES} == {key: second.values(key) for key in FIGURES}


def test_like_stock_on_two_ranks_with_larger_micro_batches(train, new_trial, stock_trial):
    micro = {"model__micro_batch_size": 2, "model__dpo__log_prob_forward_micro_batch_size": 2}
    ours = train(new_trial("ours", trainer__devices=2, **micro), ranks=2)
    same(ours, stock_trial(2, **micro))
    assert computed(ours) == PAIRS


@pytest.mark.slow
def test_like_stock_with_tensor_parallelism(train, new_trial, stock_trial):
    parallel = {"model__tensor_model_parallel_size": 2}
    same(train(new_trial("ours", trainer__devices=2, **parallel), ranks=2), stock_trial(2, **parallel))


def no_checkpoints() -> None:
    from nemo_aligner.algorithms.dpo import DPOTrainer

    DPOTrainer.save = lambda *args, **kwargs: None


def no_checkpoints_of_stock() -> None:
    no_checkpoints()
    stock()


def test_like_stock_with_all_weights_trained(train, new_trial):
    """The reference are the weights as they were at the start, put in and out again where it has to be computed."""
    keys = {"model__peft__peft_scheme": "none", "model__optim__lr": 1e-3}
    keys["exp_manager__checkpoint_callback_params__save_nemo_on_train_end"] = False
    expected = train(new_trial("stock", **keys), change=no_checkpoints_of_stock)
    ours, again = (train(new_trial(name, **keys), change=no_checkpoints) for name in ("ours", "again"))
    assert (computed(ours), computed(again)) == (PAIRS, 0)
    assert abs(expected.values("train/rewards_chosen_mean")[6]) > 1
    for key in FIGURES:
        for trial in (ours, again):
            figures = {step: trial.values(key)[step] for step in expected.values(key)}
            assert figures == pytest.approx(expected.values(key), rel=1e-4, abs=1e-5), key


def test_the_reference_takes_nothing_from_the_random_state(train, new_trial):
    """With dropout: the masks are the same whether the reference was run for each batch, beforehand, or never."""
    keys = {"model__peft__lora_tuning__adapter_dropout": 0.2}
    each = train(new_trial("each", compute__cache_reference=False, **keys))
    for name in ("before", "never"):
        trial = train(new_trial(name, **keys))
        for key in FIGURES:
            assert trial.values(key) == pytest.approx(each.values(key), rel=1e-5, abs=1e-6), (name, key)
    whole = train(new_trial("no_dropout"))
    assert whole.values("train/loss")[6] != pytest.approx(each.values("train/loss")[6], abs=1e-3)


def test_two_trials_that_start_at_once_share_the_work(train, new_trial, stock_trial):
    folders = [new_trial(name) for name in ("0", "1")]
    started = [train.start(folder, change=in_small_groups) for folder in folders]
    trials = [train.wait(folder, processes) for folder, processes in zip(folders, started, strict=True)]
    assert sum(computed(trial) for trial in trials) == PAIRS
    expected = stock_trial()
    for trial in trials:
        same(trial, expected)


def in_small_groups() -> None:
    from launcher.train.nemo_aligner.savings import reference

    reference.PAIRS_A_RANK = 4


def hang_in_the_second_group() -> None:
    from launcher.train.nemo_aligner.savings import reference

    in_small_groups()
    work = reference.Reference._rows

    def rows(self: Any, group: Any) -> Any:
        if self.computed:
            time.sleep(600)
        return work(self, group)

    reference.Reference._rows = rows


def test_a_killed_trial_leaves_its_share_to_the_others(train, new_trial, stock_trial):
    dead = new_trial("dead")
    (process,) = train.start(dead, change=hang_in_the_second_group)
    _wait_until(lambda: len(parts(dead)) == 1 and list((dead.parent / "cache").rglob("claims/*")))
    process.kill()
    process.join()
    after = train(new_trial("after"), change=in_small_groups)
    assert computed(after) == PAIRS - 4
    same(after, stock_trial())
    assert not list((dead.parent / "cache").rglob("claims/*"))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def change_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 64  # of the exponent: -2 becomes -2e-19, or the other way round
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, change_last_byte], ids=lambda damage: damage.__name__)
def test_damaged_files_are_noticed_and_made_again(train, new_trial, stock_trial, damage):
    whole = train(new_trial("whole"))
    names = [path.name for path in parts(whole.folder)]
    for path in parts(whole.folder):
        damage(path)
    trial, later = train(new_trial("damaged")), train(new_trial("later"))
    expected = stock_trial()
    same(trial, expected)
    same(later, expected)
    if damage is cut_short:
        assert computed(trial) == PAIRS
        assert computed(later) == 0
    else:
        assert "has damaged values" in trial.said()
        assert computed(later) > 0
    assert [path.name for path in parts(later.folder)] == names


def test_a_changed_row_is_computed_anew_and_the_others_are_found(train, new_trial, pairs, tmp_path):
    train(new_trial("before"))
    rows = [json.loads(line) for line in pairs["train"].read_text().splitlines()]
    rows[5]["chosen_response"] = " Something else altogether, which nobody has seen."
    changed = tmp_path / "train.jsonl"
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"model__data__data_prefix__train": [str(changed)]}
    ours = train(new_trial("after", **keys))
    same(ours, train(new_trial("stock", **keys), change=stock))
    assert computed(ours) == 1


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_with_a_found_reference(train, new_trial, stock_trial, ranks):
    folder = new_trial("ours", trainer__devices=ranks, exp_manager__max_time_per_run="00:00:00:00")
    assert train(folder, ranks).exit_codes == [0] * ranks
    config = OmegaConf.load(folder / "config.yaml")
    config.exp_manager.max_time_per_run = None
    OmegaConf.save(config, folder / "config.yaml")
    resumed = train(folder, ranks)
    assert "from step 1" in resumed.said()
    assert computed(resumed) == 0
    same(resumed, stock_trial(ranks))


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(train, new_trial, stock_trial, tmp_path):
    (tmp_path / "file").touch()
    trial = train(new_trial("ours", paths__cache=str(tmp_path / "file" / "cache")))
    assert "the reference policy is run for every batch" in trial.said()
    same(trial, stock_trial())


def _wait_until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
