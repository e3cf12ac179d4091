"""The cores and the memory that a job asks for: its GPUs' share of a node, unless the user or the site decides."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.check.cluster_limits import Site
from launcher.slurm import client, site
from launcher.submit import node_share
from tests import configs
from tests.unit.slurm.test_slurm import said

NODES = """main|idle|2|16|64000|gpu:2
big|idle|4|128|2000000|gpu:h100:8
big|down*|1|64|1000000|gpu:a100:8
cpu|idle|9|64|256000|(null)
"""
LINE = (
    "PartitionName={name} State=UP Default={default} MaxTime=UNLIMITED DefaultTime=NONE MaxNodes=UNLIMITED TotalNodes=2"
)


def cluster(keys: str = "", settings: str = "", limits: str = "") -> Site:
    """Three partitions; `keys` are added to each, `settings` to the configuration, `limits` to the user's account."""
    config = said("cluster").replace("scontrol: ", "").partition("\nPartitionName=")[0]
    lines = [LINE.format(name=name, default="YES" if name == "main" else "NO") for name in ("main", "big", "cpu")]
    text = "\n".join([config, *settings.split(), *(f"{line} {keys}" for line in lines)]).replace("@", " ")
    found = Site()
    partitions = site.partitions(text, site.node_groups(NODES))
    vars(found)["cluster"] = site.SlurmCluster(site.settings(text), partitions)
    row = f"lab|research||research|normal||||{limits}|\n"
    vars(found)["_accounts"] = (site.associations(row), "")
    return found


def asked(where: Site | None = None, ranks: int = 8, share: int = 1, **keys: Any) -> dict[str, Any]:
    """What is added to a trial of `ranks` GPUs a node in partition `big`, with other `keys` of `cluster`."""
    own = {"gpus_per_node": ranks, "partition": "big", **keys}
    changes = {"trainer.devices": ranks, **{f"cluster.{name}": value for name, value in own.items()}}
    trial = configs.typed(("cluster=slurm", "model=tiny", "data=sample"), changes)
    given = node_share.with_request(where or cluster(), trial, share)
    return {name: value for name, value in given if value != getattr(trial.cluster, name)}


def test_a_share_of_the_smallest_node_that_fits() -> None:
    assert asked() == {"cpus_per_task": 7, "mem_gb": 878}  # of 64 cores and 1,000,000 MB nine tenths
    assert asked(ranks=4) == {"cpus_per_task": 7, "mem_gb": 439}
    assert asked(ranks=1, partition=None) == {"cpus_per_task": 7, "mem_gb": 28}  # half a node of the default partition
    assert asked(ranks=2, partition="main,big") == {"cpus_per_task": 7, "mem_gb": 56}
    assert asked(ranks=1, share=2, partition="main") == {"cpus_per_task": 7, "mem_gb": 56}
    assert asked(ranks=1, exclusive=True) == {"cpus_per_task": 8, "mem_gb": 878}  # no more cores than it has use for


def test_nothing_is_asked_for_where_there_is_no_share() -> None:
    assert asked(gpus_per_node=None) == {}
    assert asked(ranks=4, partition="main") == {}  # no node has so many GPUs: the check says so
    assert asked(sbatch={"gres": "gpu:8"}) == {}
    assert asked(partition="typo") == {}


@pytest.mark.parametrize("option", ["mem-per-gpu", "mem_per_cpu", "mem"])
def test_what_the_user_asks_for_stays(option: str) -> None:
    assert asked(cpus_per_task=3) == {"mem_gb": 878}
    assert asked(mem_gb=100) == {"cpus_per_task": 7}
    assert asked(sbatch={option: "4G"}) == {"cpus_per_task": 7}
    assert asked(sbatch={"cpus-per-gpu": 4}) == {"mem_gb": 878}
    assert asked(sbatch={"gres-flags": "enforce-binding"}) == asked()


@pytest.mark.parametrize(
    ("keys", "settings", "limits", "left"),
    [
        ("MaxMemPerNode=500000", "", "", "cpus_per_task"),
        ("MaxMemPerCPU=4000", "", "", "cpus_per_task"),
        ("JobDefaults=DefMemPerGPU=64000", "", "", "cpus_per_task"),
        ("JobDefaults=DefCpuPerGPU=8", "", "", "mem_gb"),
        ("MaxCPUsPerNode=32", "", "", "mem_gb"),
        ("", "MaxMemPerNode@=@500000", "", "cpus_per_task"),
        ("", "SelectTypeParameters@=@CR_CORE", "", "cpus_per_task"),
        ("", "", "mem=100G", "cpus_per_task"),
        ("", "", "cpu=16", "mem_gb"),
    ],
)
def test_where_the_site_decides_it_is_left_to(keys: str, settings: str, limits: str, left: str) -> None:
    assert set(asked(cluster(keys, settings, limits))) == {left}


def test_limits_that_are_on_record_only_do_not_count() -> None:
    where = cluster(limits="cpu=16", settings="AccountingStorageEnforce@=@associations")
    assert set(asked(where)) == {"cpus_per_task", "mem_gb"}


def test_an_accounting_that_does_not_answer_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise client.SlurmError(client.Answer(("sacctmgr",), 1, "", "away", 0.0))

    where = cluster()
    del vars(where)["_accounts"]
    monkeypatch.setattr(client, "associations", away)
    assert asked(where) == {}
