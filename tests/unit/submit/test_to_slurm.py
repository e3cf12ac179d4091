"""What a submission asks Slurm for: which nodes a retry avoids, and options that would replace checked keys."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.job import slurm_job
from launcher.slurm import client, script
from launcher.submit import to_slurm
from launcher.sweep import bad_nodes
from launcher.trial_config.cluster import Cluster


@pytest.mark.parametrize(
    ("needed", "avoided"),
    [(1, ["node1", "node2"]), (2, ["node1"]), (3, [])],  # of three nodes
)
def test_a_retry_leaves_itself_enough_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, avoided: list[str]
) -> None:
    for cluster, node in (("alps", "node1"), ("alps", "node2"), ("lab", "node3")):
        bad_nodes.add(tmp_path, cluster, node, "unfit", 0)
    default = SimpleNamespace(name="gpu")
    monkeypatch.setattr(client, "cluster", lambda: SimpleNamespace(name="alps", default_partition=default))
    asked: set[str] = set()

    def room_without(partition: str, nodes: list[str], needed: int) -> bool:
        asked.add(partition)
        return len({"node1", "node2", "node3"} - set(nodes)) >= needed

    monkeypatch.setattr(slurm_job, "room_without", room_without)
    sweep: Any = SimpleNamespace(folder=tmp_path)
    assert to_slurm._nodes_to_avoid(sweep, None, needed) == avoided
    assert asked == {"gpu"}


def test_a_new_sweep_asks_nobody_about_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    sweep: Any = SimpleNamespace(folder=tmp_path)
    assert to_slurm._nodes_to_avoid(sweep, None, 2) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("time", "30-00:00:00"), ("partition", "x"), ("qos", "x"), ("cpus-per-task", 4), ("reservation", "x")],
)
def test_an_option_with_a_key_of_its_own_goes_through_that(option: str, value: object) -> None:
    plain = Cluster(name="slurm", time=60, signal_delay_s=60, array_parallelism=1)
    (finding,) = script.findings(plain.model_copy(update={"sbatch": {option: value}}))
    key = option.replace("-", "_")
    assert finding.where == f"cluster.sbatch.{option}" and f"cluster.{key}={value}" in finding.remedy
    other = {"licenses": "nemo:1", "gpus_per_node": "a100:4", "nice": 5}
    assert script.findings(plain.model_copy(update={"sbatch": other})) == []
