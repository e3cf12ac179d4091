"""What sbatch would refuse, and what it would accept and never start: a trial's request held against the cluster."""

from __future__ import annotations

import functools
import math
from typing import Any

from launcher import slurm
from launcher.findings import Finding
from launcher.slurm_rows import duration
from launcher.slurm_site import Association, Partition


class Site:
    """The cluster's answers, each asked for once: three commands for a submission, however many trials it has."""

    @functools.cached_property
    def cluster(self) -> slurm.Cluster:
        return slurm.cluster()

    @functools.cached_property
    def associations(self) -> list[Association] | None:
        """None where the site keeps no accounts."""
        return slurm.associations()


def findings(site: Site, config: dict[str, Any]) -> list[Finding]:
    """Everything about `cluster` and the trial's shape that this cluster would not run."""
    cluster = config["cluster"]
    try:
        partitions = {partition.name: partition for partition in site.cluster.partitions}
        associations = site.associations
    except slurm.SlurmError as error:
        why = f"Slurm does not answer ({error})"
        return [Finding("cluster", cluster["name"], why, "try again later, or run here with cluster=local")]
    name = cluster["partition"] or next((p.name for p in partitions.values() if p.default), None)
    found: list[Finding] = []
    if name is None:
        why = "is not set, and the cluster has no default"
        return [Finding("cluster.partition", "null", why, f"there are: {', '.join(sorted(partitions))}")]
    for one in str(name).split(","):
        if one not in partitions:
            why = "no such partition"
            found.append(Finding("cluster.partition", one, why, f"there are: {', '.join(sorted(partitions))}"))
    if not found:
        # Several partitions: Slurm takes whichever starts first, so one that fits is enough.
        each: list[list[Finding]] = [_partition(partitions[one], config) for one in str(name).split(",")]
        found += sorted(each, key=len)[0]
        if associations is not None:
            found += _account(associations, partitions[str(name).split(",")[0]], cluster)
    return found


def _partition(partition: Partition, config: dict[str, Any]) -> list[Finding]:
    cluster, trainer = config["cluster"], config["trainer"]
    nodes, gpus = trainer["num_nodes"], cluster["gpus_per_node"] or 0
    where = f"partition {partition.name}"
    found = []
    if partition.state != "UP":
        found.append(Finding("cluster.partition", partition.name, f"is {partition.state}", "choose another"))
    seconds = cluster["time"] * 60 if isinstance(cluster["time"], int) else duration(cluster["time"])
    if seconds is not None and seconds > partition.max_time:
        limit = f"{partition.max_time / 60:g} minutes"
        found.append(Finding("cluster.time", str(cluster["time"]), f"{where} allows {limit}", f"write at most {limit}"))
    if gpus > partition.gpus_per_node:
        why = f"{where} has {partition.gpus_per_node} GPUs a node"
        remedy = "set trainer.devices to at most that" if partition.gpus_per_node else "set it to null for CPU nodes"
        found.append(Finding("cluster.gpus_per_node", str(gpus), why, remedy))
        gpus = 0
    most = min(partition.max_nodes, partition.nodes_with(gpus=gpus, memory=(cluster["mem_gb"] or 0) * 1024))
    if nodes > most:
        largest = int(most) if most < math.inf else partition.total_nodes
        with_gpus = f" with {gpus} GPUs" if gpus else ""
        why = f"{where} gives at most {largest} nodes{with_gpus} to a job"
        found.append(Finding("trainer.num_nodes", str(nodes), why, f"write at most {largest}, or another partition"))
    return found


def _account(associations: list[Association], partition: Partition, cluster: dict[str, Any]) -> list[Finding]:
    """Accounts and QoS, where the site keeps them."""
    if not associations:
        return [
            Finding("cluster.account", "", "this cluster keeps accounts and you have none", "ask its administrators")
        ]
    mine = sorted({association.account for association in associations})
    account = cluster["account"] or next((a.account for a in associations if a.default), mine[0])
    found = []
    if account not in mine:
        why = "you have no association with this account"
        return [Finding("cluster.account", account, why, f"yours: {', '.join(mine)}")]
    if not partition.admits_account(account):
        admits = ", ".join(sorted(partition.accounts or [])) or "other accounts"
        why = f"partition {partition.name} does not admit it"
        found.append(
            Finding("cluster.account", account, why, f"it admits {admits}; choose another of {', '.join(mine)}")
        )
    allowed = frozenset[str]().union(*(a.qos for a in associations if a.account == account))
    if cluster["qos"] and allowed and cluster["qos"] not in allowed:
        why = f"account {account} may not use it"
        found.append(Finding("cluster.qos", cluster["qos"], why, f"it may use: {', '.join(sorted(allowed))}"))
    elif cluster["qos"] and not partition.admits_qos(cluster["qos"]):
        found.append(
            Finding("cluster.qos", cluster["qos"], f"partition {partition.name} does not admit it", "choose another")
        )
    return found
