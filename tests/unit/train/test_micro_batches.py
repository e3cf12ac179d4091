"""Cutting a micro batch, and where logits are needed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from omegaconf import OmegaConf  # noqa: E402

from launcher.train.nemo_aligner.savings.micro_batches import cut, length_multiple, longest_first, unsupported_reason  # noqa: E402


def batch(*lengths: tuple[int, int], padded: int = 32) -> dict[str, Any]:
    """Of pairs with (chosen, rejected) tokens."""
    pairs = len(lengths)
    made = {name: torch.arange(pairs * padded).view(pairs, padded) for name in ("chosen", "rejected", "position_ids")}
    made |= {"chosen_labels": made["chosen"] + 1, "rejected_labels": made["rejected"] + 1}
    made["chosen_length"], made["rejected_length"] = torch.tensor(lengths).unbind(1)
    made["attention_mask"] = torch.ones(pairs, 1, padded, padded).tril() < 0.5
    return {**made, "chosen_rewards": torch.ones(pairs)}


def config(**keys: Any) -> Any:
    return OmegaConf.create({"data": {"data_impl": "jsonl"}, **keys})


@pytest.mark.parametrize(("multiple", "length"), [(1, 9), (4, 12), (16, 16), (64, 32)])
def test_cut_to_the_longest_side_rounded_up(multiple: int, length: int) -> None:
    whole = batch((5, 7), (9, 3))
    made = cut(whole, multiple)
    for name in ("chosen", "rejected", "chosen_labels", "rejected_labels", "position_ids"):
        assert torch.equal(made[name], whole[name][:, :length]), name
    assert torch.equal(made["attention_mask"], whole["attention_mask"][:, :, :length, :length])
    assert made["chosen_rewards"] is whole["chosen_rewards"]


def test_reference_log_probabilities_are_cut_where_they_are_there() -> None:
    whole = batch((5, 7))
    whole["ref_policy_log_probs_chosen"] = torch.zeros(1, 32)
    assert cut(whole, 1)["ref_policy_log_probs_chosen"].shape == (1, 7)


@pytest.mark.parametrize(
    ("keys", "wanted", "multiple"),
    [
        ({}, 1, 1),
        ({"tensor_model_parallel_size": 4}, 1, 1),
        ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, 1, 4),
        ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, 6, 12),
        ({"context_parallel_size": 2}, 1, 4),
        ({"context_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True}, 16, 16),
    ],
)
def test_lengths_divide_by_what_the_parallelism_needs(keys: dict[str, Any], wanted: int, multiple: int) -> None:
    assert length_multiple(config(**keys), wanted) == multiple


def test_not_where_one_shape_is_needed() -> None:
    assert unsupported_reason(config()) == ""
    assert "pipeline" in unsupported_reason(config(pipeline_model_parallel_size=2))
    assert "packed" in unsupported_reason(OmegaConf.create({"data": {"data_impl": "packed_jsonl"}}))
    assert "first" in unsupported_reason(
        OmegaConf.create({"data": {"data_impl": "jsonl", "reset_attention_mask": True}})
    )


def test_longest_pairs_come_first_and_none_is_lost() -> None:
    pairs = [{"chosen": torch.zeros(size), "row": row} for row, size in enumerate((3, 9, 9, 1))]
    assert [pair["row"] for pair in longest_first(pairs)] == [1, 2, 0, 3]
