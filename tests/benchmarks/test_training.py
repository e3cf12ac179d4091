"""The training bench's rule of equality: what a step is allowed, and what is printed of it."""

from __future__ import annotations

import pytest

from tests.benchmarks import flops
from tests.benchmarks.equality import A_STEP, AT_EVERY_STEP, judge


@pytest.mark.parametrize(
    ("apart", "every", "growing"),
    [
        ({0: 1e-5, 1: 1e-5, 2: 1e-5}, True, True),
        ({1: 0.0, 2: 1.8e-5}, False, True),
        ({1: 1.1e-5, 3: 0.0}, False, False),
        ({0: 1.1e-5}, False, False),
        ({3: 3.1e-5}, False, False),
        ({1: float("nan")}, False, False),
    ],
)
def test_what_a_step_is_allowed(apart, every, growing):
    same = {"weights": {3: 0.0}}
    assert judge({"loss": apart, **same}, AT_EVERY_STEP)[1] == every
    assert judge({"loss": apart, **same}, A_STEP)[1] == growing


def test_the_largest_is_told_with_the_first_step_it_stands_at():
    apart = {"loss": {1: 2e-7, 2: 4e-7, 3: 4e-7}, "weights": {3: 1.7e-5}}
    assert judge(apart, A_STEP)[0] == "loss 4.0e-07 at 2, weights 1.7e-05 at 3"


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
