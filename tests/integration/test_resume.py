"""Stopped, killed, cut off in the middle of a save: a trial goes on to the same weights and metrics, bit for bit."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest

from launcher.sweep import checkpoints
from tests.integration import faults

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

#: 9 steps in two epochs of 6 steps; validated and saved after steps 3, 6 and 9.
SETTINGS = {
    "trainer__dpo__max_epochs": 2,
    "trainer__dpo__max_steps": 9,
    "model__peft__lora_tuning__adapter_dropout": 0.05,
    "evaluation__kl_pairs": 2,
    "evaluation__samples": 0,
}
TIMES = ("train/step_time", "val/validation_step_time")


def weights(trial) -> dict:
    """The adapters in the .nemo."""
    import torch

    found = {}
    with tarfile.open(trial.result["nemo"]) as archive:
        for part in (name for name in archive.getnames() if name.endswith("model_weights.ckpt")):
            state = torch.load(io.BytesIO(archive.extractfile(part).read()))
            found |= {f"{part} {name}": tensor for name, tensor in state.items()}
    assert found
    return found


def assert_same(resumed, whole) -> None:
    import torch

    keys = {key for line in whole.lines for key in line if key.startswith(("train/", "val/"))} - set(TIMES)
    assert "train/grad_norm" in keys and "val/rewards_chosen_mean" in keys
    for key in keys:
        assert resumed.values(key) == whole.values(key), key
    mine, theirs = weights(resumed), weights(whole)
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(mine[name], theirs[name]), name
    for key in ("steps", "consumed_samples", "baseline", "first", "final", "best"):
        assert timeless(resumed.result[key]) == timeless(whole.result[key]), key
    assert kept(resumed.folder) and kept(resumed.folder) <= kept(whole.folder)


def timeless(metrics):
    return {k: v for k, v in metrics.items() if k not in TIMES} if isinstance(metrics, dict) else metrics


def kept(folder: Path) -> set[tuple[int, bool]]:
    """A trial's checkpoints, each of them whole: step, and whether it is the last one or the best."""
    found = checkpoints.all_of(folder / checkpoints.FOLDER)
    assert all(checkpoints.is_whole(path) for path in found)
    steps = {(checkpoints.step_and_time(path)[0], "-last" in path.name) for path in found}
    assert len(steps) == len(found)
    return steps


@pytest.fixture(scope="module")
def wholes() -> dict:
    return {}


@pytest.fixture
def whole(train, new_trial, wholes):
    """whole(ranks) -> a trial that was never interrupted; one for all tests of this module."""

    def make(ranks: int = 1, **more):
        key = (ranks, *more.items())
        if key not in wholes:
            wholes[key] = train(new_trial("whole", trainer__devices=ranks, **{**SETTINGS, **more}), ranks)
            assert wholes[key].exit_codes == [0] * ranks, wholes[key].said()
        return wholes[key]

    return make


class Chain:
    """Starts of one trial, one after the other, each with its fault."""

    def __init__(self, train, folder: Path, ranks: int = 1) -> None:
        self.train, self.folder, self.ranks = train, folder, ranks
        self.starts = 0

    def start(self, change=None, **variables):
        variables = {"TRIAL_ATTEMPT": f"7.{self.starts}", **variables}
        self.starts += 1
        return self.train(self.folder, self.ranks, change, variables)

    def stopped(self, change, step: int, **variables):
        """A start that is warned, and leaves after `step` steps, all of them saved."""
        trial = self.start(change, **variables)
        assert trial.exit_codes == [0] * self.ranks, trial.said()
        assert not (self.folder / "result.json").exists()
        note = json.loads((self.folder / "log" / f"7.{self.starts - 1}_stopped.json").read_text())
        assert note["step"] == step
        assert "stopped" in [line.get("phase") for line in trial.lines[-2:]]
        good = checkpoints.last_good(self.folder)
        assert (good.step if good else 0) == step
        return trial

    def killed(self, change, saved: int):
        """A start that dies; the next one goes on from `saved` steps."""
        trial = self.start(change)
        assert any(trial.exit_codes), trial.said()
        good = checkpoints.last_good(self.folder)
        assert (good.step if good else 0) == saved
        return trial

    def done(self):
        trial = self.start()
        assert trial.exit_codes == [0] * self.ranks, trial.said()
        assert trial.result
        return trial


@pytest.fixture
def chain(train, new_trial):
    def make(ranks: int = 1, **more) -> Chain:
        return Chain(train, new_trial("cut", trainer__devices=ranks, **{**SETTINGS, **more}), ranks)

    return make


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a trial, whatever order its files come in."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert not list(folder.glob("results/run_*/events*")), "TensorBoard would show a second line"
    found = EventAccumulator(str(folder / "results"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_many_ends_and_the_result_of_none(ranks, chain, whole):
    """Warned between validations, at a step to validate and save at, in a validation; killed; warned at the end."""
    other = ranks - 1  # warns one rank, which is not always the first
    cut = chain(ranks, trainer__log_every_n_steps=1)
    cut.stopped(partial(faults.signal_after, 2, other), 2)
    cut.stopped(partial(faults.signal_after, 3), 3)
    cut.stopped(partial(faults.signal_in_validation, 6, other), 6)
    cut.killed(partial(faults.kill_at, 9, other), 6)
    cut.stopped(partial(faults.signal_after, 9), 9)
    resumed = cut.done()
    unbroken = whole(ranks, trainer__log_every_n_steps=1)
    assert_same(resumed, unbroken)
    for tag in ("train/loss", "val/loss"):
        assert curve(cut.folder, tag) == curve(unbroken.folder, tag)
    assert sum("val/loss" in line and line["step"] == 6 for line in resumed.lines) == 1


def test_killed_in_the_middle_of_saves(chain, whole):
    """At the best checkpoint and at the last, half written, written and not sealed, sealed with the old one there."""
    cut = chain()
    cut.killed(partial(faults.kill_in_save, 3, "half", last=False), 0)
    cut.killed(partial(faults.kill_in_save, 3, "unsealed", last=False), 0)
    cut.killed(partial(faults.kill_in_save, 3, "sealed", last=False), 3)
    cut.killed(partial(faults.kill_in_save, 6, "sealed", last=False), 6)
    cut.killed(partial(faults.kill_in_save, 9, "half", last=True), 9)
    assert_same(cut.done(), whole())


@pytest.mark.slow
def test_killed_while_the_last_checkpoint_is_saved(chain, whole):
    cut = chain()
    cut.killed(partial(faults.kill_in_save, 3, "unsealed", last=True), 3)
    cut.killed(partial(faults.kill_in_save, 6, "half", last=True), 6)
    cut.killed(partial(faults.kill_in_save, 9, "sealed", last=True), 9)
    assert_same(cut.done(), whole())


def test_truncated_checkpoints_are_passed_over(chain, whole):
    """Cut off between two starts, as by a node that lost what it had not written out; and one with other content."""
    cut = chain()
    cut.killed(partial(faults.kill_at, 8), 6)
    last = checkpoints.last_good(cut.folder)
    os.truncate(last.path, 1000)
    best = checkpoints.last_good(cut.folder)
    assert best.step == 6 and best.path != last.path
    with best.path.open("rb+") as stream:
        stream.seek(5000)
        stream.write(b"something else")
    assert checkpoints.last_good(cut.folder) is None
    assert checkpoints.last_good(cut.folder, hashes=False) == best
    assert_same(cut.done(), whole())
    assert len(list((cut.folder / "results" / "broken").iterdir())) == 2


def test_full_disk_and_what_comes_after_training(chain, whole):
    cut = chain()
    assert "No space left on device" in cut.killed(partial(faults.fail_to_save, 6), 3).said()
    cut.stopped(partial(faults.signal_in_save, 9), 9)  # in a save that is the last thing to do
    cut.stopped(faults.signal_in_evaluation, 9)
    assert_same(cut.done(), whole())


def test_files_replaced_between_two_starts_stop_the_trial(chain, pairs, tmp_path):
    """Under their names, the pairs with the same size: the checkpoint would go on with them without an error."""
    own = {split: tmp_path / f"{split}.jsonl" for split in pairs}
    for split, path in own.items():
        path.write_bytes(pairs[split].read_bytes())
    cut = chain(model__data__data_prefix={split: [str(path)] for split, path in own.items()})
    cut.stopped(partial(faults.signal_after, 2), 2)
    text = own["train"].read_text()
    own["train"].write_text(text.replace("a fine subject", "a FINE subject", 1))
    trial = cut.killed(faults.another_base_model, 2)
    for what in ("its weights are", "the pairs are"):
        assert f"{what} not what this trial has started with" in trial.said()
    own["train"].write_text(text)
    assert cut.done().result["steps"] == 9


@pytest.mark.slow
def test_killed_while_nemo_writes_the_adapters(chain, whole):
    cut = chain()
    cut.killed(faults.kill_before_nemo_file, 9)
    assert_same(cut.done(), whole())


@pytest.mark.slow
def test_warned_while_saving(chain, whole):
    """Twice, with two signals, while a checkpoint is sealed: it becomes whole, and the trial stops a step later."""
    cut = chain(2)
    cut.stopped(partial(faults.signal_in_save, 3, 1), 4)
    assert_same(cut.done(), whole(2))


def test_warned_while_loading(chain):
    """One of two ranks, before they have met: both leave with 0, and say so."""
    cut = chain(2)
    trial = cut.stopped(partial(faults.signal_while_loading, 1), 0)
    assert "nothing to save" in trial.said()


def test_the_jobs_own_clock(chain, whole):
    """No signal comes; the job's end is nearer than a step and a save take."""
    cut = chain()
    cut.stopped(None, 1, TRIAL_ENDS_AT=time.time() + 20)
    assert_same(cut.done(), whole())


def test_a_rank_that_stands_still(train, new_trial):
    """The other one says where it waits, and both are to be started again."""
    folder = new_trial(trainer__devices=2, cluster__hang_after=5, **SETTINGS)
    processes = train.start(folder, 2, partial(faults.stand_still_at, 5, 1), {"TRIAL_ATTEMPT": "7.0"})
    processes[0].join(300)
    processes[1].kill()
    trial = train.wait(folder, processes)
    assert trial.exit_codes[0] == os.EX_TEMPFAIL, trial.said()
    note = json.loads((folder / "log" / "7.0_0_error.json").read_text())
    assert note["type"] == "Hung"
    assert "train_single_step" in trial.said()
    assert trial.lines[-1]["phase"] == "hung"
    assert checkpoints.last_good(folder).step == 3


def test_a_start_that_was_taken_over_writes_nothing_more(train, new_trial):
    folder = new_trial(**SETTINGS)
    (folder / "log").mkdir()
    (folder / "log" / "current").write_text("7.1\n")
    trial = train(folder, variables={"TRIAL_ATTEMPT": "7.0"})
    assert trial.exit_codes == [77]
    assert "start 7.1 has taken over" in trial.said()
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (2, {"model__tensor_model_parallel_size": 2}),
        (1, {"trainer__precision": "bf16"}),
        (1, {"trainer__dpo__limit_train_batches": 4, "trainer__dpo__max_epochs": 3}),
        (1, {"trainer__dpo__save_interval": 6, "exp_manager__checkpoint_callback_params__save_top_k": 2}),
    ],
    ids=["tensor-parallel", "bf16", "cut-epochs", "save-every-other-validation"],
)
def test_other_settings(ranks, settings, chain, whole):
    if settings.get("model__tensor_model_parallel_size"):
        settings = {**settings, "exp_manager__checkpoint_callback_params__model_parallel_size": 2}
    cut = chain(ranks, **settings)
    cut.stopped(partial(faults.signal_after, 2), 2)
    cut.stopped(partial(faults.signal_in_validation, 3), 3)
    cut.stopped(partial(faults.signal_after, 4), 4)
    cut.killed(partial(faults.kill_at, 8), 6)
    assert_same(cut.done(), whole(ranks, **settings))
