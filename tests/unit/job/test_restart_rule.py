"""What is done when a start of a trial has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.job.restart_rule import INNOCENT, MOST_INNOCENT, Decision, Ending, decide
from launcher.sweep.starts import Kind, Start

CLUSTER = {"max_restarts": 3, "max_timeouts": 2, "max_node_failures": 1}
START = Start(name="7.0", chain="7_0", nodes="node[1-2]", began=0.0, first_step=10)


def before(*ends: tuple[Kind, int, int]) -> list[Start]:
    """Ended starts: (how, from which step, to which)."""
    return [
        replace(START, name=f"7.{place}", kind=kind, first_step=first, last_step=last)
        for place, (kind, first, last) in enumerate(ends)
    ]


def decided(kind: Kind, step: int, *chain: tuple[Kind, int, int], **more: Any) -> Decision:
    blamed = more.pop("blamed", {})
    return decide(before(*chain), START, Ending(kind, "it broke", step, **more), CLUSTER, blamed)


def test_bounds_are_counted_apart() -> None:
    assert decided("timeout", 20, ("failure", 0, 5), ("failure", 5, 10), ("timeout", 1, 2)).go_on
    over = decided("timeout", 20, ("timeout", 1, 2), ("timeout", 2, 10))
    assert not over.go_on and "3 times" in over.why and "cluster.max_timeouts=2" in over.why
    assert not decided("node", 20, ("node", 0, 10)).go_on
    assert decided("failure", 20, ("node", 0, 10), ("preempted", 0, 10)).go_on


@pytest.mark.parametrize("kind", sorted(INNOCENT))
def test_what_is_nobodys_fault_is_bounded_high_and_asks_for_no_progress(kind: Kind) -> None:
    assert decided(kind, 10, *[("preempted", 10, 10)] * 50).go_on
    assert not decided(kind, 10, *[("preempted", 10, 10)] * MOST_INNOCENT).go_on


@pytest.mark.parametrize("kind", ["done", "cancelled", "replaced", "refused"])
def test_what_is_not_repeated(kind: Kind) -> None:
    assert not decided(kind, 20).go_on


def test_two_starts_without_progress_are_enough() -> None:
    assert decided("failure", 10).go_on
    assert not decided("failure", 10, ("timeout", 10, 10)).go_on
    stopped = decided("timeout", 10, ("failure", 10, 10), ("preempted", 10, 10))
    assert not stopped.go_on and "no progress in two starts, both from step 10" in stopped.why
    assert decided("failure", 10, ("failure", 5, 10)).go_on
    assert decided("failure", 11, ("failure", 10, 10)).go_on
    assert decided("node", 10, ("failure", 10, 10)).go_on, "no fault of the trial's"
    assert decided("failure", 10, ("failure", 0, 0), ("asked", 0, 10)).go_on, "the one between them came on"


def test_a_suspect_node_is_excluded_and_the_start_there_does_not_count_as_one_without_progress() -> None:
    assert decided("failure", 10, suspect="node2").exclude == ("node2",)
    blamed = [replace(before(("failure", 10, 10))[0], blamed="node1")]
    assert decide(blamed, START, Ending("failure", "other", 10), CLUSTER, {"node1": "it broke"}).go_on


def test_what_happens_on_another_node_too_is_not_the_nodes_fault() -> None:
    made = decided("failure", 10, suspect="node2", blamed={"node1": "it broke", "node3": "a full disk"})
    assert not made.go_on and made.cleared == ["node1"] and made.exclude == ()
    unfit = decided("node", 10, suspect="node2", unfit=True, blamed={"node1": "it broke"})
    assert unfit.go_on, "a node that failed its check is unfit, however many are"
    assert unfit.exclude == ("node2",)
