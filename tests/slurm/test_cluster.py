"""The cluster that the tests start: it works as a cluster does, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.daemon import ClusterFailed, Pid, wait_until
from tests.slurm.existing import Existing

ROOT = Path(__file__).parents[2]


def processes_with(text: str) -> list[str]:
    """Command lines of all processes that have a text in their command line or environment, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            whole = line + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in whole and int(folder.name) != os.getpid():
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_an_array_of_two_nodes_with_two_tasks_each(cluster: Existing, tmp_path: Path) -> None:
    """Every rank has a place of its own: a node, a number on it, its share of the GPUs."""
    if not cluster.own:
        tmp_path = Path.cwd()  # a compute node elsewhere does not see /tmp
    script = """#!/bin/bash
srun bash -c 'echo "$SLURM_ARRAY_TASK_ID $SLURM_PROCID $SLURM_LOCALID $(hostname) $(hostname -i) $CUDA_VISIBLE_DEVICES"'
"""
    shape = ["--array=0-1", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--exclusive"]
    out = f"--output={tmp_path}/%A_%a.txt"
    array = cluster.run("sbatch", "--parsable", "--wait", *shape, out, input=script, timeout=120).stdout.strip()
    for task in (0, 1):
        said = tmp_path / f"{array}_{task}.txt"
        lines = sorted(line.split() for line in said.read_text().splitlines())
        assert [line[:3] for line in lines] == [[f"{task}", f"{rank}", f"{rank % 2}"] for rank in range(4)]
        hosts = [line[3] for line in lines]
        assert hosts[0] == hosts[1] and hosts[2] == hosts[3]
        if not (isinstance(cluster, Cluster) and not cluster.own_hosts):
            assert hosts[0] != hosts[2], "the two nodes have one name"
            assert lines[0][4] != lines[2][4], "the two nodes have one address"
        assert all(len(line[5].split(",")) == 2 for line in lines)


def test_accounting_knows_what_ran(cluster: Existing) -> None:
    job = cluster.run(
        "sbatch", "--parsable", "--wait", "-o", "/dev/null", "--wrap", "exit 3", check=False
    ).stdout.strip()

    def accounted() -> bool:
        return cluster.run("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode").stdout == "FAILED|3:0\n"

    assert wait_until(accounted, 10), cluster.run("sacct", "-j", job).stdout


def test_accounts_qos_and_partitions(own_cluster: Cluster) -> None:
    qos = own_cluster.run("sacctmgr", "-n", "-P", "show", "qos", "format=name,preempt,preemptmode").stdout.splitlines()
    assert "high|normal|requeue" in qos
    rows = own_cluster.run("sinfo", "-h", "-o", "%P %a %l").stdout.splitlines()
    assert {"main* up 7-00:00:00", "short up 5:00", "dead down infinite", "wide up infinite"} == set(rows)
    assert "Invalid account" in own_cluster.run("sbatch", "-A", "vip", "--wrap", "true", check=False).stderr


def test_an_urgent_job_preempts_and_the_other_comes_back(own_cluster: Cluster, cluster: Existing) -> None:
    everything = ["--parsable", f"--nodes={own_cluster.shape.nodes}", "--exclusive", "-o", "/dev/null"]
    low = cluster.run("sbatch", *everything, "--wrap", "sleep 600").stdout.strip()
    assert wait_until(lambda: f"{low} RUNNING None" in cluster.queue(), 30)
    high = cluster.run("sbatch", *everything, "--qos=high", "--wrap", "sleep 2").stdout.strip()
    assert wait_until(lambda: f"{high} RUNNING None" in cluster.queue(), 60), cluster.queue()
    assert wait_until(lambda: f"{low} RUNNING None" in cluster.queue(), 60), cluster.queue()
    assert cluster.run("squeue", "-h", "-j", low, "-O", "RestartCnt").stdout.strip() == "1"


def test_a_node_whose_slurmd_dies_goes_on_working_and_one_without_power_does_not(
    own_cluster: Cluster, cluster: Existing
) -> None:
    if not own_cluster.own_hosts:
        pytest.skip("needs root")
    sleep = f"600.{os.getpid()}"  # a command line of our own, to be found
    cluster.run("sbatch", "-w", "node1", "-o", "/dev/null", "--wrap", f"sleep {sleep}")
    assert wait_until(lambda: len(processes_with(f"sleep\0{sleep}")) == 1, 30)
    own_cluster.kill("node1")
    assert len(processes_with(f"sleep\0{sleep}")) == 1
    own_cluster.power_off("node1")
    assert processes_with(f"sleep\0{sleep}") == []
    own_cluster.restart("node1")
    cluster.cancel_all()
    assert wait_until(lambda: own_cluster.node_state("node1") == "idle", 60), own_cluster.node_state("node1")


def test_the_controller_comes_back_with_its_queue(own_cluster: Cluster, cluster: Existing) -> None:
    job = cluster.run("sbatch", "--parsable", "-H", "-o", "/dev/null", "--wrap", "true").stdout.strip()
    own_cluster.kill("slurmctld", signal.SIGTERM)
    assert "slurmctld" not in own_cluster.pids()
    own_cluster.restart("slurmctld")
    assert f"{job} PENDING JobHeldUser" in cluster.queue()
    own_cluster.kill("slurmdbd", signal.SIGTERM)
    assert cluster.run("sacct", "-j", job, check=False).returncode == 1
    own_cluster.restart("slurmdbd")
    assert cluster.run("sacct", "-j", job).returncode == 0


def test_a_second_cluster_at_once_and_nothing_left_of_it(
    own_cluster: Cluster, cluster: Existing, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Cluster(nodes=1, gpus=0, options={"EnforcePartLimits": "ALL"}) as second:
        folder = str(second.places.folder)
        assert second.places.network != own_cluster.places.network
        assert (second.run("srun", "hostname", "-s").stdout == "node1\n") == second.own_hosts
        assert (
            "PartitionTimeLimit"
            not in second.run("sbatch", "-p", "short", "-t", "9", "--wrap", "true", check=False).stderr
        )
        second.run("sbatch", "-o", "/dev/null", "--wrap", "setsid sleep 600 & setsid sleep 601")
        assert cluster.queue() == [], "the first cluster has a job of the second"
        pids = [Pid(number) for number in second.pids().values()]
        assert len(pids) == 5 and len(processes_with(folder)) >= 5
    assert not any(pid.alive() for pid in pids)
    assert wait_until(lambda: processes_with(folder) == [], 5), processes_with(folder)
    assert not Path(folder).exists()
    second.down()  # twice is no harm
    assert own_cluster.run("srun", "true").returncode == 0, "the first one works on"


def test_a_start_that_fails_says_which_daemon_and_leaves_nothing(slurm_installed: None, tmp_path: Path) -> None:
    broken = Cluster(nodes=1, options={"SelectType": "select/nonsense"})
    with pytest.raises(ClusterFailed, match=r"(?s)slurmctld ended with code 1; .*select/nonsense"):
        broken.up()
    assert not broken.places.folder.exists()
    assert processes_with(str(broken.places.folder)) == []


def test_folders_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    for folder, why in (
        (tmp_path, "not empty|longer than"),
        (Path("/tmp/a b"), "no blanks"),
        (Path("/tmp/" + "x" * 60), "longer than"),
    ):
        with pytest.raises(ValueError, match=why):
            Cluster(folder=folder).up()
    assert (tmp_path / "mine").read_text() == "keep me"
    with pytest.raises(ValueError, match="nodes=0: 1 to 250"):
        Cluster(nodes=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_line_ends_it_all_however_it_ends(
    slurm_installed: None, number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.slurm.cluster", "--nodes", "1", "--gpus", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        conf = process.stdout.readline().partition("=")[2].strip()
        folder = Path(conf).parents[1]
        assert processes_with(str(folder))
        process.send_signal(number)
        code = process.wait(30)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert wait_until(lambda: processes_with(str(folder)) == [], 10), processes_with(str(folder))
    if number == signal.SIGKILL:
        assert folder.exists(), "nobody is left to remove it"
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert not folder.exists()


def test_one_command_on_a_cluster_of_its_own(slurm_installed: None) -> None:
    command = [sys.executable, "-m", "tests.slurm.cluster", "--nodes", "1", "--gpus", "2", "--", "bash", "-c"]
    done = subprocess.run([*command, "sinfo -h -o %G; exit 7"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "gpu:2\n" * 4 if done.stdout.count("gpu") > 1 else "gpu:2\n")
