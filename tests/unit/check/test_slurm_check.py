"""What a cluster would refuse or never start, held against a real cluster's recorded answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launcher.check import cluster_limits, disk
from launcher.compose.trials import PlannedTrial
from launcher.slurm import client
from launcher.slurm import site as slurm_site
from launcher.slurm.run import Answer
from launcher.slurm.site import SlurmCluster
from launcher.submit import evaluation
from launcher.trial_config.config import TrialConfig
from tests.unit.conftest import changed
from tests.unit.slurm.test_slurm import said

LIMITS = ("submit", "wall", "each", "group")  # the last columns of an association


def site(associations: str | None = None, drained: bool = False, enforce: str = "associations,limits,qos") -> Any:
    """A cluster `lab`: partitions main, short, dead and wide of 2 nodes, 16 CPUs, 64 GB and 2 GPUs each."""
    label = "cluster with a node drained" if drained else "cluster"
    text = said(label).replace("associations,limits,qos", enforce).replace("scontrol: ", "")
    settings = slurm_site.settings(text)
    found = cluster_limits.Site()
    partitions = slurm_site.partitions(text, slurm_site.node_groups(said(f"{label} 2")))
    vars(found)["cluster"] = SlurmCluster(settings, partitions)
    rows = slurm_site.associations(said("associations") if associations is None else associations)
    vars(found)["_accounts"] = (rows, "")
    return found


@pytest.fixture
def trial(composed: Any, workspace: Path) -> Any:
    """A trial of 2 nodes x 2 GPUs that this cluster would run; trial(key=value, ...) sets keys of it."""
    config, _ = composed("cluster=slurm", "model=tiny", "trainer.num_nodes=2", "trainer.devices=2")

    def build(**keys: Any) -> TrialConfig:
        rooms = {name: "trainer" if name in ("num_nodes", "devices") else "cluster" for name in keys}
        return changed(config, {f"{rooms[name]}.{name}": value for name, value in keys.items()})

    return build


def found(where: Any, config: TrialConfig, trials: int = 3) -> list[str]:
    return [str(finding) for finding in cluster_limits.findings(where, config, trials)]


def test_a_good_trial(trial: Any) -> None:
    assert found(site(), trial(mem_gb=60, cpus_per_task=8, time="7-00:00:00")) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"partition": "nope"}, "cluster.partition=nope: no such partition; there are: dead, main, short, wide"),
        ({"partition": "dead"}, "cluster.partition=dead: is DOWN"),
        ({"partition": "short", "time": 30}, "cluster.time=30: partition short allows 5 minutes"),
        ({"num_nodes": 3}, "trainer.num_nodes=3: partition main gives a job at most 2 nodes with 2 GPUs"),
        ({"gpus_per_node": 4}, "cluster.gpus_per_node=4: partition main has 2 GPUs a node"),
        ({"account": "vip"}, "cluster.account=vip: you have no association with this account; yours: research, root"),
        (
            {"gpus_per_node": "a100:2"},
            "cluster.gpus_per_node=a100:2: partition main has 0 GPUs of type a100 a node; its GPUs",
        ),
        ({"mem_gb": 100}, "cluster.mem_gb=100: 0 nodes of partition main with 2 GPUs have that much memory"),
        ({"qos": "gold"}, "cluster.qos=gold: account research may not use it"),
        ({"partition": "wide"}, "cluster.account=research: partition wide does not admit it"),
    ],
)
def test_what_this_cluster_never_runs(trial: Any, keys: dict[str, Any], said: str) -> None:
    (finding,) = found(site(), trial(**keys))
    assert finding.startswith(said)


@pytest.mark.parametrize(
    ("limits", "keys", "said"),
    [
        ({"wall": "01:00:00"}, {"time": 90}, "cluster.time=90: account research allows 60 minutes"),
        ({"each": "node=1"}, {}, "trainer.num_nodes=2: account research gives a job at most 1 nodes; a trial"),
        ({"each": "gres/gpu=3"}, {}, "cluster.gpus_per_node=2: account research gives a job at most 3 GPUs"),
        ({"group": "gres/gpu=2"}, {}, "cluster.gpus_per_node=2: account research gives a job at most 2 GPUs"),
        ({"group": "cpu=8"}, {"cpus_per_task": 4}, "cluster.cpus_per_task=4: account research gives a job at most 8"),
        ({"each": "mem=50G"}, {"mem_gb": 30.5}, "cluster.mem_gb=30.5: account research gives a job at most 51200 MB"),
        ({"submit": "2"}, {}, "cluster.account=research: may have 2 jobs waiting and running, and this sweep"),
    ],
)
def test_limits_of_the_account(trial: Any, limits: dict[str, str], keys: dict[str, Any], said: str) -> None:
    row = "|".join(["lab", "research", "", "research", "high,normal", "", *(limits.get(n, "") for n in LIMITS)]) + "\n"
    keys = {"time": 30, **keys}
    (finding,) = found(site(row), trial(**keys))
    assert finding.startswith(said)
    assert found(site(row, enforce="associations"), trial(**keys)) == []  # on record only


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"num_nodes": 2},
            "cluster.trials_per_node=4: a trial with trainer.num_nodes=2 cannot share its nodes; set trainer",
        ),
        ({"gpus_per_node": 1}, "cluster.trials_per_node=4: partition main has 2 GPUs a node, and each trial takes 1"),
        ({"gpus_per_node": 3}, "cluster.gpus_per_node=3: partition main has 2 GPUs a node"),
        (
            {"gpus_per_node": None, "sbatch": {"gres": "gpu:2"}},
            "cluster.sbatch.gres=gpu:2: Slurm does not",
        ),
    ],
)
def test_trials_that_share_a_node(trial: Any, keys: dict[str, Any], said: str) -> None:
    many = {"num_nodes": 1, "trials_per_node": 4, **keys}
    (finding,) = found(site(), trial(**many), trials=24)
    assert finding.startswith(said)
    few = trial(num_nodes=1, gpus_per_node=1, trials_per_node=4)
    assert found(site(), few, trials=2) == []  # then the node has two


def test_trials_that_share_a_node_are_one_job(trial: Any) -> None:
    row = "lab|research||research|high,normal||5|||gres/gpu=3\n"
    shared = trial(num_nodes=1, gpus_per_node=1, trials_per_node=2, time=30)
    assert found(site(row), shared, trials=10) == []
    assert "this sweep would be 6 jobs" in found(site(row), shared, trials=11)[0]
    row = row.replace("gpu=3", "gpu=1")
    assert "2 trials on a node ask for 2 over" in found(site(row), shared, trials=10)[0]


def test_the_association_that_counts(trial: Any) -> None:
    own = "lab|research|main|research|normal||||node=1|\n"
    both = "lab|research||research|normal||||node=9|\n" + own
    assert "at most 1 nodes" in found(site(both), trial())[0]  # the partition's own row wins
    assert found(site(both.replace("|main|", "|short|")), trial()) == []
    elsewhere = "far|vip||vip|normal|||||\n" + said("associations")  # one slurmdbd, two clusters
    assert "no association" in found(site(elsewhere), trial(account="vip"))[0]
    assert "you have none" in found(site("far|vip||vip|normal|||||\n"), trial())[0]


def warned(where: Any, folder: Path, *configs: TrialConfig) -> list[str]:
    trials = [PlannedTrial([], config) for config in configs]
    return [str(finding) for finding in cluster_limits.warnings(where, trials, folder)]


def test_nodes_that_are_down_now(trial: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: disk.FileSystem("nfs4", "server:/x", "/"))
    assert warned(site(), workspace, trial()) == []
    (finding,) = warned(site(drained=True), workspace, trial(), trial(comment="x"))
    assert "partition main has 2 nodes that fit, but 1 can be used now" in finding
    assert warned(site(drained=True), workspace, trial(num_nodes=1)) == []
    assert found(site(drained=True), trial()) == []


def test_a_folder_of_this_machine_alone(trial: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: disk.FileSystem("tmpfs", "tmpfs", "/tmp"))
    (finding,) = warned(site(), workspace / "runs", trial(), trial(comment="x"))
    assert finding.startswith(f"paths.runs={workspace / 'runs'}: is on tmpfs (tmpfs at /tmp) (and pretrained")
    single = site()
    one = [dataclasses.replace(p, total_nodes=1) for p in single.cluster.partitions]
    vars(single)["cluster"] = SlurmCluster(single.cluster.settings, one)
    assert warned(single, workspace / "runs", trial()) == []


def test_a_slurm_that_does_not_answer(trial: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = found(cluster_limits.Site(), trial())
    assert "Slurm does not answer" in finding and "cluster=local" in finding


def test_accounts_that_cannot_be_seen_are_sbatchs_affair(
    trial: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites forbid sacctmgr to users, or it lists nothing, or this user has no name: sbatch may take the sweep."""
    monkeypatch.setattr(disk, "file_system", lambda path: disk.FileSystem("nfs4", "server:/x", "/"))

    def denied() -> Any:
        raise client.SlurmError(Answer(("sacctmgr",), 1, "", "sacctmgr: error: Access/permission denied\n", 0.0))

    def nameless() -> Any:
        raise KeyError("getpwuid(): uid not found: 54321")

    for answer, why in ((denied, "Access/permission denied"), (nameless, "no name"), (list, "lists none of yours")):
        where = site()
        del vars(where)["_accounts"]
        monkeypatch.setattr(client, "associations", answer)
        assert found(where, trial()) == []
        (finding,) = warned(where, workspace, trial())
        assert finding.startswith("cluster.account: your accounts and their limits were not checked") and why in finding


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"gpus": 3}, "evaluation.slurm.gpus=3: partition main has 2 GPUs a node; 0 on nodes without; or another"),
        ({"partition": "nope"}, "evaluation.slurm.partition=nope: no such partition; there are: dead, main, short"),
        ({"partition": "short"}, "evaluation.slurm.time=60: partition short allows 5 minutes; write at most 5 minutes"),
        ({"mem_gb": 100}, "evaluation.slurm.mem_gb=100: 0 nodes of partition main with 1 GPUs have that much memory"),
        ({"qos": "gold"}, "evaluation.slurm.qos=gold: account research may not use it"),
    ],
)
def test_an_evaluation_that_this_cluster_never_runs(trial: Any, keys: dict[str, Any], said: str) -> None:
    """sbatch would take the trials, and refuse their evaluation or keep it waiting for ever."""
    good = trial()
    assert evaluation.findings(site(), good, 3) == []
    (finding,) = evaluation.findings(site(), changed(good, {f"evaluation.slurm.{k}": v for k, v in keys.items()}), 3)
    assert str(finding).startswith(said)
    inherited = trial(partition="short", time=5)
    (finding,) = evaluation.findings(site(), inherited, 3)
    assert str(finding).startswith("evaluation.slurm.time=60: partition short allows 5 minutes")


def test_a_profile_names_the_partition_and_the_account(trial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch takes SBATCH_PARTITION and SBATCH_ACCOUNT where the script names none."""
    monkeypatch.setenv("SBATCH_PARTITION", "dead")
    assert found(site(), trial()) == ["cluster.partition=dead: is DOWN; choose another"]
    assert found(site(), trial(partition="main")) == []
    monkeypatch.delenv("SBATCH_PARTITION")
    monkeypatch.setenv("SBATCH_ACCOUNT", "vip")
    assert "vip: you have no association" in found(site(), trial())[0]
    monkeypatch.delenv("SBATCH_ACCOUNT")
    monkeypatch.setenv("SBATCH_QOS", "gold")
    assert "cluster.qos=gold: account research may not use it" in found(site(), trial())[0]
    assert found(site(), trial(qos="high")) == []
    monkeypatch.delenv("SBATCH_QOS")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "30")
    assert "cluster.time=30: partition short allows 5" in found(site(), trial(partition="short", time=None))[0]
    monkeypatch.setenv("SBATCH_TIMELIMIT", "UNLIMITED")
    assert found(site(), trial(partition="short", time=None)) == []


def test_a_cluster_without_arrays(trial: Any) -> None:
    where = site()
    where.cluster.settings["MaxArraySize"] = "0"
    (finding,) = found(where, trial())
    assert "MaxArraySize=0" in finding


def test_gpus_of_a_type(trial: Any) -> None:
    where = site()
    typed = [dataclasses.replace(g, gpus={"a100": 4, "v100": 2}) for g in where.cluster.partition("main").groups]
    main = dataclasses.replace(where.cluster.partition("main"), groups=tuple(typed))
    vars(where)["cluster"] = SlurmCluster(where.cluster.settings, [main])
    assert found(where, trial(gpus_per_node="a100:4")) == []
    assert "main has 2 GPUs of type v100" in found(where, trial(gpus_per_node="v100:4"))[0]
    assert "its types: a100, v100" in found(where, trial(gpus_per_node="h100:1"))[0]


def test_another_cluster_is_not_judged_by_this_one(trial: Any, workspace: Path) -> None:
    """Its partitions have other names and limits."""
    config = trial(partition="of_nautilus", account="there", sbatch={"clusters": "nautilus"})
    assert found(site(), config) == []
    (warning,) = warned(site(), workspace, config)
    assert "cluster.sbatch.clusters=nautilus" in warning and "not checked" in warning
