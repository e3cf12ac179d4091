"""Several ranks in bf16, real NeMo-Aligner on the CPU: one policy, one rank's loss, and a guard that fires."""

from __future__ import annotations

import itertools
import os
import types
from functools import partial
from pathlib import Path

import pytest

from tests.integration import faults
from tests.integration.minimal_trial import write_pairs, write_trial
from tests.integration.test_training import in_file_order

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

STEPS = {"trainer__dpo__max_steps": 10, "trainer__dpo__val_check_interval": 5, "trainer__dpo__save_interval": 5}
#: How far a step's loss may be from that of one rank on the same pairs. Main gradients are added up in fp32, so that
#: over 10 steps of `tiny` the largest difference measured was 5e-10 in bf16 and 3e-8 in fp32 with 4 ranks. Gradients
#: that are not added up differ by more than 1e-3 from the second step on.
NOISE = 1e-6
NOISE_OF_ROWS = 1e-3
"""Where pairs share rows: with another number of ranks a row holds other pairs, and bf16 rounds by the shape of what is
multiplied. Measured: 2.3e-4 on 2 ranks; 9e-4 for SmolLM2. The ranks' adapters are equal bit for bit all the same.
"""
SEQUENCES = {"compute__share_prompt": False}
"""Each sequence by itself, so that its rounding does not depend on the other pairs of its rank."""


def recorded() -> None:
    """Pairs in the file's order; every rank's adapters in a file at the end; no reduction that nobody waits for."""
    in_file_order()
    import torch

    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    reduce = torch.distributed.all_reduce
    pending: set[int] = set()
    numbers = itertools.count()

    def watched(*args, **kwargs):
        handle = reduce(*args, **kwargs)
        if not kwargs.get("async_op"):
            return handle
        wait, number = handle.wait, next(numbers)
        pending.add(number)

        def waited() -> None:  # Megatron's layers start one in backward, and wait for it there
            wait()
            pending.discard(number)

        return types.SimpleNamespace(wait=waited)

    torch.distributed.all_reduce = watched
    fit = PreferenceTrainer.fit

    def and_write(self):
        fit(self)
        assert not pending, f"{len(pending)} reductions were started and never waited for"
        state = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        torch.save(state, Path(os.environ["ADAPTERS"]) / f"{os.environ['RANK']}.pt")

    PreferenceTrainer.fit = and_write


def change_an_adapter_of_rank_1() -> None:
    """After the second step, one bit of one weight of rank 1."""
    import torch

    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    step = PreferenceTrainer.__mro__[1].train_single_step

    def wrong(self, batch):
        answer = step(self, batch)
        if self.step == 1 and os.environ["RANK"] == "1":
            weight = next(p for p in self.model.parameters() if p.requires_grad)
            with torch.no_grad():
                weight.view(-1)[-1] += 1.0
        return answer

    PreferenceTrainer.__mro__[1].train_single_step = wrong


def adapters(folder: Path, ranks: int) -> list[dict]:
    import torch

    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def trained(train, new_trial, tmp_path, pairs, name, ranks=1, **overrides):
    folder = tmp_path / f"adapters_{name}"
    folder.mkdir()
    files = {**pairs, "train": write_pairs(tmp_path / "train.jsonl", 40)}
    prefix = {split: [str(path)] for split, path in files.items()}
    trial = new_trial(name, trainer__devices=ranks, model__data__data_prefix=prefix, **STEPS, **overrides)
    done = train(trial, ranks=ranks, change=recorded, variables={"ADAPTERS": folder})
    assert done.exit_codes == [0] * ranks, done.said()
    return done, adapters(folder, ranks)


@pytest.mark.parametrize(
    "ranks, overrides",
    [
        (2, {"trainer__precision": "bf16"}),
        (2, {"trainer__precision": "bf16-mixed", **SEQUENCES}),
        pytest.param(2, {"trainer__precision": "bf16", **SEQUENCES}, marks=pytest.mark.slow),
        pytest.param(4, {"trainer__precision": "bf16", **SEQUENCES}, marks=pytest.mark.slow),
        pytest.param(
            2,
            {"trainer__precision": "bf16", "model__peft__peft_scheme": "none", **SEQUENCES},
            marks=pytest.mark.slow,
        ),
        pytest.param(4, {"trainer__precision": "32", **SEQUENCES}, marks=pytest.mark.slow),
    ],
    ids=["bf16 in rows", "bf16-mixed", "bf16", "bf16, 4 ranks", "bf16, all weights", "fp32, 4 ranks"],
)
def test_all_ranks_train_one_policy(train, new_trial, tmp_path, pairs, ranks, overrides):
    import torch

    noise = NOISE if "compute__share_prompt" in overrides else NOISE_OF_ROWS

    many, weights = trained(train, new_trial, tmp_path, pairs, "many", ranks, **overrides)
    for rank, other in enumerate(weights[1:], start=1):
        for name, weight in weights[0].items():
            assert torch.equal(weight, other[name]), f"rank {rank}: {name}"
    alone, _ = trained(train, new_trial, tmp_path, pairs, "alone", **overrides)
    for key in ("train/loss", "val/loss"):
        assert many.values(key) == pytest.approx(alone.values(key), abs=noise), key
    assert many.values("train/loss")[10] < 0.6, "too little was learnt for the comparison to mean anything"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
def test_tensor_parallel_ranks_train_one_policy(train, new_trial, tmp_path, pairs, precision):
    """Two replicas of two ranks each against one: ranks 0 and 2 hold the same half of the adapters, 1 and 3 the other.

    One rank alone is no measure here: it draws other initial adapters than two halves do.
    """
    import torch

    keys = {"trainer__precision": precision, "model__tensor_model_parallel_size": 2, **SEQUENCES}
    many, weights = trained(train, new_trial, tmp_path, pairs, "many", 4, **keys)
    for one, other in ((0, 2), (1, 3)):
        for name, weight in weights[one].items():
            assert torch.equal(weight, weights[other][name]), f"ranks {one} and {other}: {name}"
    alone, _ = trained(train, new_trial, tmp_path, pairs, "alone", 2, **keys)
    for key in ("train/loss", "val/loss"):
        assert many.values(key) == pytest.approx(alone.values(key), abs=NOISE), key


@pytest.fixture
def smollm2(train, tmp_path):
    """smollm2(name, ranks=1, **overrides) -> a trial of SmolLM2-135M of 10 steps of 4 short pairs, and its adapters."""
    from data_prep import convert_checkpoint

    nemo = convert_checkpoint.convert("smollm2_135m", tmp_path / "smollm2_135m.nemo", verify=False)
    train_pairs = write_pairs(tmp_path / "train.jsonl", 40)
    held_out = write_pairs(tmp_path / "validation.jsonl", 8, start=100)
    keys = {
        "trainer.precision": "bf16",
        "trainer.dpo.max_steps": 10,
        "trainer.dpo.val_check_interval": 10,
        "trainer.dpo.save_interval": 10,
        "model.micro_batch_size": 1,
        "model.global_batch_size": 4,
        "model.encoder_seq_length": 128,
        "model.optim.lr": 5e-4,
        "compute.share_prompt": False,  # which pairs share a row, and so how bf16 rounds, depends on a rank's share
        "evaluation": {"kl_pairs": 0, "samples": 0, "sample_tokens": 0},
    }

    def trained(name, ranks=1, **overrides):
        changes = {**keys, "trainer.devices": ranks, **{k.replace("__", "."): v for k, v in overrides.items()}}
        files = {"train": train_pairs, "validation": held_out, "test": held_out}
        folder = write_trial(tmp_path / name, "smollm2_135m", nemo, files, changes)
        (tmp_path / f"adapters_{name}").mkdir()
        variables = {"ADAPTERS": tmp_path / f"adapters_{name}", "OMP_NUM_THREADS": 1}
        done = train(folder, ranks, recorded, variables)
        assert done.exit_codes == [0] * ranks, done.said()
        return done, adapters(tmp_path / f"adapters_{name}", ranks)

    return trained


@pytest.mark.slow
def test_smollm2_in_bf16_trains_one_policy_on_many_ranks(smollm2):
    """135 million parameters on 1, 2 and 4 ranks. Gradients are added up in fp32: 7.5e-9 was the largest difference."""
    import torch

    alone, _ = smollm2("alone")
    for ranks in (2, 4):
        many, weights = smollm2(f"{ranks} ranks", ranks)
        for rank, other in enumerate(weights[1:], start=1):
            assert all(torch.equal(weight, other[name]) for name, weight in weights[0].items()), f"rank {rank}"
        for key in ("train/loss", "val/loss"):
            assert many.values(key) == pytest.approx(alone.values(key), abs=NOISE), key
    assert alone.values("train/loss")[10] < 0.6, "too little was learnt for the comparison to mean anything"


def test_ranks_that_differ_stop_the_trial(train, new_trial):
    folder = new_trial(trainer__devices=2, **STEPS)
    trial = train(folder, ranks=2, change=change_an_adapter_of_rank_1)
    assert all(trial.exit_codes), trial.exit_codes
    assert "RanksDiffer: after step 2 the trainable weights of the data-parallel ranks differ" in trial.said()
    assert not (folder / "result.json").exists()


def an_older_data_file_on_rank_1() -> None:
    """Of the same size, as where a word was corrected."""
    from launcher.train.nemo_aligner import session

    facts = session.facts

    def older(config, steps):
        known = facts(config, steps)
        if os.environ["RANK"] == "1":
            (file,) = config.model.data.data_prefix.train
            other = Path(os.environ["OLDER"])
            other.write_text(Path(file).read_text().replace("a fine subject", "a FINE subject", 1))
            elsewhere = config.copy()
            elsewhere.model.data.data_prefix.train = [str(other)]
            known["data"][file] = facts(elsewhere, steps)["data"][str(other)]
        return known

    session.facts = older


@pytest.mark.parametrize(
    "change, reason",
    [
        (partial(faults.another_base_model, 1), "after step 0 the weights of the data-parallel ranks differ"),
        (an_older_data_file_on_rank_1, "data: rank 1 has {"),
    ],
    ids=["another base model", "older data"],
)
def test_ranks_that_differ_before_the_first_step_stop_the_trial(train, new_trial, tmp_path, change, reason):
    trial = train(new_trial(trainer__devices=2), 2, change, {"OLDER": tmp_path / "older.jsonl"})
    assert all(trial.exit_codes), trial.exit_codes
    assert f"RanksDiffer: {reason}" in trial.said()
    assert not trial.values("train/loss")
