"""Which pairs share a row, and which rank has them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from launcher.train.nemo_aligner.savings.row import deal, share_out


def test_every_pair_has_a_place_and_no_row_is_too_long() -> None:
    lengths = [90, 10, 60, 40, 50, 50, 30, 0]
    dealt = deal(lengths, 100)
    assert sorted(pair for row in dealt for pair in row) == list(range(8))
    assert [sum(lengths[pair] for pair in row) for row in dealt] == [100, 100, 100, 30]


def test_a_pair_that_is_longer_than_a_row_has_one_of_its_own() -> None:
    assert deal([30, 200, 30], 100) == [[1], [0, 2]]


def test_nothing_to_deal() -> None:
    assert deal([], 100) == []


def test_ranks_get_like_work_and_as_many_pairs_as_before() -> None:
    lengths = [100, 90, 80, 20, 30, 40, 50, 10]
    shared = share_out(lengths, [4, 4])
    assert sorted(pair for share in shared for pair in share) == list(range(8))
    assert [len(share) for share in shared] == [4, 4]
    sums = [sum(lengths[pair] for pair in share) for share in shared]
    assert max(sums) - min(sums) <= 20
    assert all(
        [lengths[pair] for pair in share] == sorted((lengths[p] for p in share), reverse=True) for share in shared
    )


def test_shares_may_have_different_numbers() -> None:
    assert share_out([5, 5, 5], [2, 1]) == [[0, 2], [1]]
    assert share_out([3, 9], [2]) == [[1, 0]]
