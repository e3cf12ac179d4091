"""What a warning costs a trial: nothing. Real NeMo-Aligner on 2 nodes; the table is printed at the end of the tests."""

from __future__ import annotations

import pytest

from tests.slurm import inject
from tests.slurm.cases import Case
from tests.slurm.victim import BF16, LONGER, SAVE, trained

pytestmark = [pytest.mark.slurm, pytest.mark.nemo]
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("how", "words"),
    [("USR2", ()), pytest.param("SIGTERM", (), marks=slow), pytest.param("USR2", (BF16,), marks=slow)],
    ids=["USR2", "SIGTERM", "USR2, bf16"],
)
def test_a_signal(case: Case, how: str, words: tuple[str, ...]) -> None:
    """To the ranks, as Slurm warns them."""
    case.submit(*words)
    case.sweep.reach(6)
    {"USR2": inject.usr2, "SIGTERM": inject.term}[how](case.sweep, 0)
    row = case.row(f"{how}, bf16" if words else how)
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 1)


@slow
def test_a_signal_to_the_batch_script(case: Case) -> None:
    """It is not the script's business: the ranks go on undisturbed."""
    case.submit()
    case.sweep.reach(6)
    inject.term_script(case.sweep, 0)
    row = case.row("SIGTERM to the batch script alone")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 0)


@slow
def test_preemption(case: Case) -> None:
    """By a job of a higher QoS, after GraceTime; all nodes are busy, so that it has to."""
    case.submit()
    case.sweep.reach(6)
    inject.preempt(case.sweep)
    row = case.row("QoS preemption")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 1)


@slow
def test_preemption_of_trials_that_share_a_node(case: Case) -> None:
    """One job has two trials: both are warned, save, and go on by one requeue."""
    case.submit("trainer.num_nodes=1", "cluster.trials_per_node=2", trials=("trainer.log_every_n_steps=1,2",))
    case.sweep.reach(6, trial=0)
    case.sweep.reach(6, trial=1)
    inject.preempt(case.sweep, 0)
    case.sweep.hit(1)
    for trial in (1, 0):
        row = case.row("QoS preemption of two trials on a node", trial)
        assert row.troubles == [] and (row.lost, row.restarts) == (0, 1)
    assert len(case.sweep.desk.arrays()) == 1


@slow
def test_time_limit(case: Case) -> None:
    """2 minutes for a trial that needs more: USR2 comes at about half of it, and as often as it takes."""
    case.submit(*LONGER, "cluster.time=2", "cluster.signal_delay_s=30")
    case.sweep.wait_ended(900)
    first = next(lines for lines in case.sweep.attempts() if trained(lines))
    case.sweep.faults[0] = [max(line["time"] for line in first if "train/loss" in line)]
    row = case.row("time limit", note="of 2 minutes, USR2 30 s before it; 320 steps")
    assert row.troubles == [] and row.lost == 0 and row.restarts >= 1


@slow
def test_requeue_by_an_operator(case: Case) -> None:
    case.submit()
    case.sweep.reach(6)
    inject.requeue(case.sweep)
    row = case.row("scontrol requeue")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1
