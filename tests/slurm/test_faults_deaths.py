"""What a sudden death costs a trial: at most the steps since its last checkpoint that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm import inject
from tests.slurm.cases import Case
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.victim import BF16, SAVE

pytestmark = [pytest.mark.slurm, pytest.mark.nemo]
slow = pytest.mark.slow


@pytest.mark.parametrize("words", [(), pytest.param((BF16,), marks=slow)], ids=["fp32", "bf16"])
def test_a_rank_killed(case: Case, words: tuple[str, ...]) -> None:
    case.submit(*words)
    case.sweep.reach(6)
    inject.signal_rank(inject.KILL, rank=1)(case.sweep, 0)
    row = case.row("one rank killed -9, bf16" if words else "one rank killed -9")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_a_rank_segfaults(case: Case) -> None:
    case.submit()
    case.sweep.reach(6)
    inject.sabotage("segfault", rank=0)(case.sweep, 0)
    row = case.row("one rank segfaulting")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_a_rank_hangs(case: Case) -> None:
    """Under SIGSTOP it says nothing; the other waits for it in a collective, and has to notice."""
    case.submit("cluster.hang_after=20")
    case.sweep.reach(6)
    inject.signal_rank(inject.STOP, rank=1)(case.sweep, 0)
    row = case.row("one rank hanging (SIGSTOP)", note="noticed after cluster.hang_after=20 s, which is in `seconds`")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1
    logs = "".join(log.read_text() for log in (case.sweep.folder / "0" / "log").glob("*_0_log.out"))
    assert "all_reduce" in logs or "Thread 0x" in logs, "no stack trace of the rank that waited"


@slow
def test_out_of_memory(case: Case) -> None:
    """A rank takes 6 GB of a job's 3: Slurm kills the step."""
    case.submit()
    case.sweep.reach(6)
    inject.sabotage("memory", rank=1)(case.sweep, 0)
    row = case.row("out of memory")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


@slow
def test_disk_full_while_saving(case: Case, own_cluster: Cluster, tmp_path: Path) -> None:
    """The next checkpoint finds less room than it needs; there is room again when the start has failed."""
    if not own_cluster.own_hosts:
        pytest.skip("a file system is mounted for it, which takes root")
    with inject.SmallDisk(own_cluster, tmp_path / "disk") as disk:
        case.sweep.desk = Desk(own_cluster, disk.folder / "desk")
        case.sweep.desk.set_up()
        case.submit()
        case.sweep.reach(5)
        case.sweep.hit()
        disk.fill(left_bytes=100_000)
        case.sweep.until(lambda: not case.sweep.ranks())
        case.sweep.until(lambda: case.sweep.look().trials[0].state != "RUNNING")
        disk.free()
        row = case.row("disk full while saving")
    assert row.troubles == [] and row.lost <= SAVE and row.restarts == 1


def test_checkpoint_truncated_between_runs(case: Case, own_cluster: Cluster) -> None:
    """The one that a warning had it save is cut in half while the trial waits: the one before it has to do."""
    case.submit()
    case.sweep.reach(6)
    inject.wait_for_partition(own_cluster, "DOWN")
    inject.usr2(case.sweep)
    case.sweep.until(lambda: not case.sweep.ranks() and case.sweep.look().trials[0].state == "WAITING")
    cut = inject.truncate_last_checkpoint(case.sweep)
    inject.wait_for_partition(own_cluster, "UP")
    row = case.row("checkpoint truncated between runs", note="after USR2; goes on from the checkpoint before it")
    assert row.troubles == [] and 0 < row.lost <= SAVE and row.restarts == 1, cut


@slow
def test_two_faults_in_a_row(case: Case) -> None:
    case.submit()
    case.sweep.reach(6)
    inject.signal_rank(inject.KILL, rank=0)(case.sweep, 0)
    case.sweep.reach(10, attempt=2)
    inject.node_down(rank=1)(case.sweep, 0)
    row = case.row("two faults in a row", note="rank 0 killed -9 at step 6, a node set down at step 10")
    assert row.troubles == [] and row.lost <= 2 * SAVE and row.restarts == 2
