"""launcher.slurm.client against a real Slurm: what it reads there, and with how many commands."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.slurm import client, run
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.existing import Existing

SLEEP = "#!/bin/bash\nsleep 600\n"
QUIET = "--output=/dev/null"


def words(job: int) -> dict[str, str]:
    return {row.name: row.state.word for row in client.squeue([job])}


def test_what_the_cluster_has(own_cluster: Cluster, cluster: Existing) -> None:
    with run.recorded() as answers:
        found = client.cluster()
        mine = client.associations()
    assert len(answers) == 3, "with one for each, a submission would take more than three questions"
    shape = own_cluster.shape
    assert (found.name, found.max_array_size) == ("lab", shape.max_array_size)
    partition = found.default_partition
    assert partition is not None and partition.name == "main"
    assert (partition.total_nodes, partition.nodes_with(gpus=shape.gpus, usable=True)) == (shape.nodes, shape.nodes)
    assert (max(group.memory for group in partition.groups), partition.max_time) == (shape.mem, 7 * 86400)
    short, wide, dead = (found.partition(name) for name in ("short", "wide", "dead"))
    assert short is not None and short.max_time == 300
    assert wide is not None and wide.admits_account("vip") and not wide.admits_account("research")
    assert dead is not None and dead.state == "DOWN"
    (default,) = [row for row in mine or [] if row.default]
    assert (default.account, default.qos) == ("research", {"normal", "high"})
    assert client.associations("nobody") == []


def test_the_machine(cluster: Existing) -> None:
    assert client.available() and client.version() >= (22, 5) and any(client.ping().values())


def test_an_array_whose_name_has_everything_in_it(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> None:
    name = "a|b $(touch x)\n;é%j"
    script = tmp_path / "it's a $(script).sh"
    script.write_text("#!/bin/bash\nexit $SLURM_ARRAY_TASK_ID\n")
    made = client.sbatch(
        script, [f"--job-name={name}", f"--comment='{name}[1-2],\"'", "--array=0-2%2", "--nodes=2", QUIET]
    )
    with run.recorded() as answers:
        rows = client.squeue([made.job_id])
    assert len(answers) == 1
    assert {row.task_id for row in rows} == {0, 1, 2} and {row.node_count for row in rows} == {2}
    assert {row.job_id for row in client.squeue(name=name)} <= {
        row.job_id for row in client.squeue([made.job_id], ended=True)
    }
    assert wait_until(lambda: client.squeue([made.job_id]) == [], 30)

    def ended() -> list[tuple[int, str, int]]:
        found = [row for row in client.sacct([made.job_id]) if row.task_id is not None]
        return sorted((row.task_id or 0, row.state.word, row.exit_code) for row in found)

    assert wait_until(lambda: ended() == [(0, "COMPLETED", 0), (1, "FAILED", 1), (2, "FAILED", 2)], 20), ended()
    assert {row.array_id for row in client.sacct([made.job_id])} == {made.job_id}


def test_a_thousand_waiting_elements_are_one_question(own_cluster: Cluster, cluster: Existing) -> None:
    job = client.sbatch(args=["--array=0-999", "--hold", QUIET], text=SLEEP).job_id
    client.count.clear()
    assert len(client.squeue([job])) == 1000
    assert wait_until(lambda: len(client.sacct([job])) == 1000, 10)
    assert client.count["squeue"] == 1


def test_cancelling(own_cluster: Cluster, cluster: Existing) -> None:
    job = client.sbatch(args=["--array=0-4", "--hold", QUIET], text=SLEEP).job_id
    client.scancel([f"{job}_[1-2]", f"{job}_4", 999999])
    assert words(job) == {f"{job}_0": "PENDING", f"{job}_3": "PENDING"}
    # what `sacct` in launcher.slurm.client says of such elements; if this fails on a newer Slurm, all the better
    assert {row.name for row in client.squeue([job], ended=True)} == {f"{job}_0", f"{job}_3"}
    client.scancel([job])
    assert wait_until(lambda: {row.state.word for row in client.sacct([job])} == {"CANCELLED"}, 10)
    client.scancel([job])


def test_requeueing(own_cluster: Cluster, cluster: Existing) -> None:
    job = client.sbatch(args=["--array=7", QUIET], text=SLEEP).job_id
    name = f"{job}_7"
    assert wait_until(lambda: words(job) == {name: "RUNNING"}, 30)
    client.requeue([name])
    assert wait_until(lambda: words(job) == {name: "PENDING"}, 30), client.squeue([job])
    (row,) = client.squeue([job])
    assert (row.restarts, row.reason) == (1, "BeginTime")
    time.sleep(2)  # see start_now
    client.start_now([name])
    assert wait_until(lambda: words(job) == {name: "RUNNING"}, 30), client.squeue([job])
    assert wait_until(lambda: len(client.sacct([name], every_run=True)) == 2, 10)
    assert [row.state.word for row in client.sacct([name])] == ["RUNNING"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--partition=nope"], "Invalid partition name specified"),
        (["--account=vip"], "Invalid account or account/partition combination specified"),
        (["--array=0-5000"], "Invalid job array specification"),
        (["--gpus-per-node=99"], "Requested node configuration is not available"),
    ],
)
def test_what_sbatch_refuses(own_cluster: Cluster, cluster: Existing, options: list[str], why: str) -> None:
    with pytest.raises(client.SlurmError, match=why):
        client.sbatch(args=[*options, QUIET], text=SLEEP)
    assert client.squeue() == []


def test_a_controller_that_is_down_is_an_error_and_not_an_empty_queue(own_cluster: Cluster, cluster: Existing) -> None:
    own_cluster.kill("slurmctld")
    try:
        assert list(client.ping().values()) == [False]
        with pytest.raises(client.SlurmError, match="Unable to contact slurm controller"):
            client.squeue([1])
    finally:
        own_cluster.restart("slurmctld")
