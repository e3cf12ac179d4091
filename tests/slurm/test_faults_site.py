"""What happens around a trial: its nodes, Slurm's daemons, its user."""

from __future__ import annotations

import signal
import time

import pytest

from launcher.__main__ import main
from tests.slurm import inject
from tests.slurm.cases import Case
from tests.slurm.cluster import Cluster
from tests.slurm.faults import Result
from tests.slurm.victim import BF16, LONG, SAVE

pytestmark = [pytest.mark.slurm, pytest.mark.nemo]
slow = pytest.mark.slow


@slow
def test_scancel_of_one_element(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays cancelled, the other goes on; `retry` takes it from where it was."""
    case.submit(trials=("trainer.log_every_n_steps=1,2",))
    case.sweep.reach(6, trial=1)
    inject.cancel(case.sweep, 1)
    look = case.sweep.wait_ended()
    assert [state.state for state in look.trials] == ["DONE", "CANCELLED"]
    assert look.trials[1].restarts == 0 and case.sweep.orphans() == []
    assert Result.of(look.trials[0].trial).differs(case.references()) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # another number rounds otherwise
    assert main(["retry", "1", str(case.sweep.folder)]) == 0
    row = case.row("scancel of one element", trial=1, note="then `retry`; the other trial was not disturbed")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@pytest.mark.parametrize(
    ("rank", "words"),
    [(1, ()), pytest.param(0, (), marks=slow), pytest.param(1, (BF16,), marks=slow)],
    ids=["another node", "the batch script's node", "another node, bf16"],
)
def test_node_set_down(case: Case, rank: int, words: tuple[str, ...]) -> None:
    case.submit(*words)
    case.sweep.reach(6)
    inject.node_down(rank)(case.sweep, 0)
    name = "node set down" if rank else "node of the batch script set down"
    row = case.row(f"{name}, bf16" if words else name)
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
@pytest.mark.parametrize("rank", [1, 0])
def test_slurmd_killed(case: Case, rank: int) -> None:
    """Slurm takes the node for dead after SlurmdTimeout, and what ran on it runs on."""
    case.submit(*LONG)
    case.sweep.reach(6)
    inject.slurmd_killed(rank)(case.sweep, 0)
    name = "slurmd killed -9" if rank else "slurmd of the batch script killed -9"
    row = case.row(name, note="SlurmdTimeout=15 s is in `seconds`")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_slurmd_killed_under_a_trial_of_one_node(case: Case) -> None:
    """Nothing in its own work tells the trial that Slurm has given its node up and starts it elsewhere."""
    case.submit(*LONG, "trainer.num_nodes=1", "trainer.devices=2")
    case.sweep.reach(6)
    inject.slurmd_killed(0)(case.sweep, 0)
    row = case.row("slurmd killed -9, trial of one node", note="SlurmdTimeout=15 s is in `seconds`")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_power_cut(case: Case) -> None:
    case.submit(*LONG)
    case.sweep.reach(6)
    inject.power_cut(1)(case.sweep, 0)
    row = case.row("node without power", note="SlurmdTimeout=15 s is in `seconds`")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_slurmctld_restarted(case: Case) -> None:
    case.submit()
    case.sweep.reach(6)
    inject.controller_restarted(case.sweep)
    row = case.row("slurmctld restarted")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 0)


@slow
def test_slurmctld_away_when_a_trial_wants_back(case: Case, own_cluster: Cluster) -> None:
    """All ranks are warned while no controller answers; it is back after 40 s."""
    case.submit()
    case.sweep.reach(6)
    own_cluster.kill("slurmctld", signal.SIGTERM)
    case.sweep.hit()
    for rank in case.sweep.ranks():
        rank.pid.kill(signal.SIGUSR2)
    time.sleep(40)
    own_cluster.restart("slurmctld")
    row = case.row("USR2 while slurmctld is away", note="40 s of it, which are in `seconds`")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 1)


@slow
def test_slurmdbd_away(case: Case, own_cluster: Cluster) -> None:
    """The accounting is away while a trial is warned, requeued and done."""
    case.submit()
    case.sweep.reach(6)
    own_cluster.kill("slurmdbd")
    inject.usr2(case.sweep)
    case.sweep.wait_ended()
    own_cluster.restart("slurmdbd")
    row = case.row("slurmdbd away", note="and USR2 meanwhile")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 1)


@slow
def test_the_submitting_process_killed(case: Case) -> None:
    case.references()
    with case.sweep.begin("wait=true") as process:
        try:
            case.sweep.until(case.sweep.submitted)
            case.sweep.reach(6)
            case.sweep.hit()
        finally:
            process.kill()
    row = case.row("the submitting process killed")
    assert row.troubles == [] and (row.lost, row.restarts) == (0, 0)


@slow
def test_a_warning_before_the_training(case: Case) -> None:
    """USR2 while NeMo is imported: nothing is there to be saved."""
    case.submit()
    case.sweep.until(lambda: len(case.sweep.ranks()) == 2)
    time.sleep(4)
    inject.usr2(case.sweep)
    row = case.row("USR2 while it starts")
    assert row.troubles == [] and (row.before, row.lost, row.restarts) == (0, 0, 1)
