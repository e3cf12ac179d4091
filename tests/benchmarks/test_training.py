"""The training bench's rule of equality: what a step is allowed, and what is printed of it."""

from __future__ import annotations

import pytest

from tests.benchmarks import flops
from tests.benchmarks.equality import judge


@pytest.mark.parametrize(
    ("apart", "good"),
    [
        ({0: 1e-5, 1: 1e-5, 2: 1e-5}, True),
        ({1: 0.0, 2: 1.1e-5}, False),
        ({0: 1.1e-5}, False),
        ({1: float("nan")}, False),
    ],
)
def test_what_a_step_is_allowed(apart, good):
    assert judge({"loss": apart, "weights": {3: 0.0}})[1] == good


def test_the_largest_is_told_with_the_first_step_it_stands_at():
    apart = {"loss": {1: 2e-7, 2: 4e-7, 3: 4e-7}, "weights": {3: 1.7e-5}}
    assert judge(apart)[0] == "loss 4.0e-07 at 2, weights 1.7e-05 at 3"


def test_flops_are_those_of_a_whole_layer():
    """Two FLOPs for each weight and position forward; backward as many again, and a third time for adapters."""
    base = sum(rows * columns for rows, columns in flops.PROJECTIONS)
    adapters = sum(flops.RANK * (rows + columns) for rows, columns in flops.PROJECTIONS)
    one = flops.Work(positions=1)
    assert flops.of_pass(one, train=False) == 2 * flops.LAYERS * (base + adapters)
    assert flops.of_pass(one, train=True) == flops.LAYERS * (4 * base + 6 * adapters)
    pair = flops.of_rows([(5, 2, 3)], 5)
    assert (pair.positions, pair.scores, pair.logits) == (10, 49 + 24, 5)
    assert flops.of_pass(flops.Work(scores=1), train=False) == 4 * flops.LAYERS * flops.HIDDEN
