"""Prompts computed once: NeMo-Aligner's own numbers, whatever goes with it, and nothing seen over a boundary."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.integration.test_savings import PAIRS, computed, same

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

RECOMPUTED = {
    "full": {"granularity": "full", "method": "uniform", "num_layers": 1},
    "selective": {"granularity": "selective", "method": None, "num_layers": None},
}


@pytest.fixture
def sharing(new_trial: Callable[..., Path]) -> Callable[..., Path]:
    """new_trial, with prompts computed once."""

    def make(name: str = "ours", **overrides: Any) -> Path:
        return new_trial(name, compute__share_prompt=True, **overrides)

    return make


def test_like_stock_with_a_computed_and_a_cached_reference(train, sharing, stock_trial):
    cached, found = train(sharing("cached")), train(sharing("found"))
    each = train(sharing("each", compute__cache_reference=False))
    assert (computed(cached), computed(found)) == (PAIRS, 0)
    for trial in (cached, found, each):
        same(trial, stock_trial())
        assert re.search("prompts are computed once;.* attention by", trial.said())


def test_like_stock_on_two_ranks_with_larger_micro_batches(train, sharing, stock_trial):
    micro = {"model__micro_batch_size": 2, "model__dpo__log_prob_forward_micro_batch_size": 2}
    same(train(sharing(trainer__devices=2, **micro), ranks=2), stock_trial(2, **micro))


def test_like_stock_in_rows_that_are_padded(train, sharing, stock_trial):
    same(train(sharing(compute__length_multiple=64)), stock_trial())


@pytest.mark.slow
def test_like_stock_with_tensor_parallelism(train, sharing, stock_trial):
    parallel = {"model__tensor_model_parallel_size": 2}
    same(train(sharing(trainer__devices=2, **parallel), ranks=2), stock_trial(2, **parallel))


@pytest.mark.slow
@pytest.mark.parametrize("what", RECOMPUTED)
def test_like_stock_with_recomputation(train, sharing, stock_trial, what):
    keys = {f"model__activations_checkpoint_{name}": value for name, value in RECOMPUTED[what].items()}
    same(train(sharing(**keys)), stock_trial())


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_like_stock_when_resumed(train, sharing, stock_trial, ranks):
    folder = sharing(trainer__devices=ranks, exp_manager__max_time_per_run="00:00:00:00")
    assert train(folder, ranks).exit_codes == [0] * ranks
    config = OmegaConf.load(folder / "config.yaml")
    config.exp_manager.max_time_per_run = None
    OmegaConf.save(config, folder / "config.yaml")
    resumed = train(folder, ranks)
    assert "from step 1" in resumed.said()
    same(resumed, stock_trial(ranks))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_like_stock_in_rows_of_as_many_pairs_as_fit(train, sharing, stock_trial, ranks):
    """With a limit that some pairs exceed; ranks have different numbers of rows, and the last has a pair alone."""
    trial = train(sharing(compute__positions_per_micro_batch=150, trainer__devices=ranks), ranks, count_rows)
    same(trial, stock_trial(ranks))
    counts = [int(word) for word in re.findall(r"^rows: (\d+)$", trial.said(), re.MULTILINE)]
    assert len(set(counts)) > 1
    for key in ("train/acc", "train/rewards_all_std", "val/acc", "val/rewards_all_mean"):
        expected = stock_trial(ranks).values(key)
        found = {step: trial.values(key)[step] for step in expected}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), key


def count_rows() -> None:
    from launcher.train.nemo_aligner.savings import row

    deal = row.deal

    def told(lengths: Any, limit: int) -> Any:
        dealt = deal(lengths, limit)
        print(f"rows: {len(dealt)}", flush=True)
        return dealt

    row.deal = told


def look_for_leaks() -> None:
    """The rank looks what a pair's numbers depend on, instead of training; it leaves "leaks: 0" in its log."""
    from launcher.train.nemo_aligner import session as training

    training.AlignerSession.run = _look_for_leaks


def _look_for_leaks(session: Any) -> str:
    import torch

    from launcher.train.nemo_aligner.divergence import megatron_gpt
    from launcher.train.nemo_aligner.savings import row

    model, trainer = session.model, session.trainer
    data = trainer.train_dataloader.dataset
    batch = trainer.collate_fn([data[place] for place in range(4)], pad_length_to_multiple_of=16)
    batch["ref_policy_log_probs_chosen"] = torch.zeros(batch["chosen"].shape)
    batch["ref_policy_log_probs_rejected"] = torch.zeros(batch["chosen"].shape)
    made = row.of_batch(batch, 64)
    assert made.lengths.shape == (5, 3)  # four pairs, and padding
    embedded: list[Any] = []

    def keep(module: Any, given: Any, output: Any) -> Any:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = megatron_gpt(model).embedding.register_forward_hook(keep)
    output, finish = model.get_forward_output_and_loss_func()(iter([batch]), model.model)
    values: list[Any] = []
    model.loss_func = lambda found, *rest, **more: (values.append(found), (found.sum(), found.sum()))[1]
    finish(output)
    hook.remove()
    # Each position of the row belongs to a part of a pair; padding to none.
    part = torch.cat(
        [torch.tensor([-1] * b + [pair] * c + [pair + 4] * r) for pair, (b, c, r) in enumerate(made.lengths.tolist())]
    )
    owner = torch.cat([torch.full((sum(each),), pair) for pair, each in enumerate(made.lengths.tolist())])
    leaks = seen = 0
    for sequence in range(8):
        (gradient,) = torch.autograd.grad(values[0][sequence].sum(), embedded[0], retain_graph=True)
        touched = gradient[:, 0].ne(0).any(-1)
        own = (owner == sequence % 4) & ((part == -1) | (part == sequence))
        leaks += int((touched & ~own).sum())
        seen += int((touched & own).sum())
    assert seen > 50
    # And by perturbation: another token in one part changes no other part's log-probabilities by a bit.
    with torch.no_grad():
        before = model.get_logprob_batch(batch)
        for pair, (beginning, chosen, rejected) in enumerate(made.lengths[:4].tolist()):
            for side, rest, name in ((0, chosen, "chosen"), (1, rejected, "rejected")):
                for place in range(beginning + 1, beginning + rest):
                    other = {**batch, name: batch[name].clone()}
                    other[name][pair, place] = 7
                    changed = (model.get_logprob_batch(other) != before).any(1)
                    changed[pair + 4 * side] = False
                    leaks += int(changed.sum())
    print(f"leaks: {leaks}", flush=True)
    return "looked"


def test_nothing_is_seen_over_a_boundary(train, sharing):
    micro = {"model__micro_batch_size": 4, "model__dpo__log_prob_forward_micro_batch_size": 4}
    trial = train(sharing(compute__length_multiple=64, **micro), change=look_for_leaks)
    assert "leaks: 0" in trial.said(), trial.said()


def evaluate_instead() -> None:
    """The rank evaluates the trial, which is done, with a prompt for each response."""
    from launcher.train import run
    from launcher.train.nemo_aligner import evaluate

    run.run_trial = evaluate.evaluate_trial


def test_the_exact_divergence_is_that_of_sequences(train, sharing):
    folder = sharing(evaluation__kl_pairs=6)
    by_rows = train(folder).result["evaluation"]["per_pair"]
    by_sequences = train(folder, change=evaluate_instead).result["evaluation"]["per_pair"]
    assert max(by_rows["kl_chosen"]) > 0.01
    for name, column in by_sequences.items():
        assert by_rows[name] == pytest.approx(column, rel=1e-4, abs=1e-4), name


def test_off_where_it_cannot_be(train, sharing, stock_trial):
    trial = train(sharing(model__data__reset_position_ids=True))
    assert "prompts are computed twice: model.data.reset_" in trial.said()
    same(trial, stock_trial(model__data__reset_position_ids=True))
