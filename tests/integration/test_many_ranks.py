"""Ranks that do not agree stop the trial. That those which do train one policy is in test_rank_matrix.py."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from tests.integration import faults

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

STEPS = {"trainer__dpo__max_steps": 10, "trainer__dpo__val_check_interval": 5, "trainer__dpo__save_interval": 5}


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


def another_record_on_rank_1() -> None:
    """The .nemo on its disk was made from another checkpoint."""
    from launcher.train.nemo_aligner import session

    if os.environ["RANK"] == "1":
        session.nemo_file.read_record = lambda path: {"source": "another"}


@pytest.mark.parametrize(
    "change, tensor, reason",
    [
        (partial(faults.another_base_model, 1), 1, "after step 0 the weights of the data-parallel ranks differ"),
        (partial(faults.another_base_model, 1), 2, "after step 0 the weights that every tensor-parallel rank keeps"),
        (partial(faults.the_part_of_rank_0, 1), 2, "tensor-parallel ranks 0 and 1 hold the same part"),
        (another_record_on_rank_1, 1, "base model: rank 1 has 'another'"),
        (an_older_data_file_on_rank_1, 1, "data: rank 1 has {"),
    ],
    ids=["another base model", "another base model, TP", "another's part, TP", "another record", "older data"],
)
def test_ranks_that_differ_before_the_first_step_stop_the_trial(train, new_trial, tmp_path, change, tensor, reason):
    folder = new_trial(trainer__devices=2, model__tensor_model_parallel_size=tensor)
    trial = train(folder, 2, change, {"OLDER": tmp_path / "older.jsonl"})
    assert all(trial.exit_codes), trial.exit_codes
    assert f"RanksDiffer: {reason}" in trial.said()
    assert not trial.values("train/loss")
