"""Compares a trial's request with the cluster: what sbatch would refuse, or would accept and never start."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

from launcher.check import disk
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding
from launcher.slurm import client, profile, script
from launcher.slurm.run import SlurmMissing
from launcher.slurm.site import Association, Partition, SlurmCluster
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import TrialConfig


class Site:
    """The cluster's answers. Each is asked for once: three commands a submission, however many trials it has."""

    @functools.cached_property
    def cluster(self) -> SlurmCluster:
        return client.cluster()

    @functools.cached_property
    def _accounts(self) -> tuple[list[Association] | None, str]:
        """What sacctmgr lists for this user, or why that is not known: it may be forbidden, absent or list nothing."""
        try:
            rows = client.associations()
        except SlurmMissing:
            return None, "sacctmgr is not on the PATH"
        except client.SlurmError as error:
            return None, error.message or str(error)
        except KeyError:
            return None, f"uid {os.getuid()} has no name on this machine"
        return (rows, "") if rows or rows is None else (None, "sacctmgr lists none of yours")

    @property
    def associations(self) -> list[Association] | None:
        """None if the site keeps no accounts or this user cannot see them: then only sbatch decides."""
        return self._accounts[0]

    @property
    def accounts_unknown(self) -> str:
        """Why this user's accounts are not known; "" if they are, or if the site keeps none."""
        return self._accounts[1]

    @property
    def enforces_limits(self) -> bool:
        """Whether accounts' limits hold here, or are only kept on record (slurm.conf(5), AccountingStorageEnforce)."""
        enforced = self.cluster.settings.get("AccountingStorageEnforce", "").lower()
        return bool({"limits", "safe", "all"} & set(enforced.split(",")))


def _with_profile(config: TrialConfig) -> TrialConfig:
    cluster = config.cluster.model_copy(update=profile.filled(dict(config.cluster)))
    return config.model_copy(update={"cluster": cluster})


def findings(site: Site, config: TrialConfig, trials: int = 1) -> list[Finding]:
    """Parts of `cluster` and the trial's shape that this cluster would not run. `trials`: number in the whole sweep."""
    config = _with_profile(config)
    cluster = config.cluster
    if cluster.other_clusters:
        return []
    try:
        partitions = {partition.name: partition for partition in site.cluster.partitions}
        associations = site.associations
    except client.SlurmError as error:
        why = f"Slurm does not answer ({error})"
        return [Finding("cluster", cluster.name, why, "try again later, or run here with cluster=local")]
    name = asked_for(site, cluster)
    problems = _side_by_side(config)
    if not site.cluster.max_array_size:
        why = "MaxArraySize=0 turns job arrays off on this cluster, and a sweep is an array"
        return [Finding("cluster", cluster.name, why, "ask its administrators for arrays")]
    if name is None:
        why = "is not set, and the cluster has no default"
        return [Finding("cluster.partition", "null", why, f"there are: {', '.join(sorted(partitions))}")]
    for part in name.split(","):
        if part not in partitions:
            why = "no such partition"
            problems.append(Finding("cluster.partition", part, why, f"there are: {', '.join(sorted(partitions))}"))
    if not problems:
        # With several partitions Slurm takes the one that can start first, so one that fits is enough.
        together = script.share(config.cluster, trials)
        unfit: list[list[Finding]] = [_partition(partitions[part], config, together) for part in name.split(",")]
        problems += sorted(unfit, key=len)[0]  # noqa: FURB192  mypy cannot type min with this key
        if associations is not None:
            here = site.cluster.name.lower()  # slurmdbd may hold several clusters, with names in lower case
            associations = [row for row in associations if row.cluster.lower() == here]
            partition = partitions[name.split(",")[0]]
            problems += _account(associations, partition, cluster)
            if not problems and site.enforces_limits:
                problems += _limits(_association(associations, partition, cluster), config, trials)
    return problems


def cluster_name(site: Site, cluster: Cluster) -> str:
    """Slurm's name of the cluster that gets a trial's array; several, separated by commas, if sbatch is to choose."""
    return cluster.other_clusters or os.environ.get("SBATCH_CLUSTERS") or site.cluster.name


def _side_by_side(config: TrialConfig) -> list[Finding]:
    """Settings that do not work for trials that share a node."""
    cluster, nodes = config.cluster, config.nodes
    together = cluster.trials_per_node
    if together == 1:
        return []
    if nodes > 1:
        why = f"a trial with trainer.num_nodes={nodes} cannot share its nodes"
        return [Finding("cluster.trials_per_node", str(together), why, "set trainer.num_nodes=1, or leave this at 1")]
    options = [option for option in cluster.sbatch if str(option).startswith(("gres", "gpus"))]
    options = [option for option in options if str(option).replace("-", "_") != "gres_flags"]
    why = "Slurm does not report each trial's part of these GPUs"
    remedy = "set cluster.gpus_per_node (GPUs of one trial), or leave cluster.trials_per_node at 1"
    return [Finding(f"cluster.sbatch.{option}", str(cluster.sbatch[option]), why, remedy) for option in options]


def warnings(site: Site, trials: Sequence[PlannedTrial], folder: Path) -> list[Finding]:
    """What this cluster accepts but may not run well: nodes that are down now, folders that only this machine has.

    It sends Slurm no query that `findings` has not sent already. `folder` is the sweep's folder.
    """
    unique: dict[Finding, None] = {}
    if site.accounts_unknown:
        account = str(trials[0].config.cluster.account or "")
        why = f"your accounts and their limits were not checked ({site.accounts_unknown})"
        unique[Finding("cluster.account", account, why, "if sbatch refuses: `sshare -U` may list them")] = None
    places: dict[tuple[str, Path], None] = {("paths.runs", folder): None}
    largest = 1
    for trial in trials:
        config = _with_profile(trial.config)
        unique.update(dict.fromkeys(_warned_late(config.cluster)))
        if others := config.cluster.other_clusters:
            why = "partition, account and limits were not checked: they are those of other clusters"
            unique[Finding("cluster.sbatch.clusters", others, why, "`sinfo -M` lists the partitions there")] = None
            continue
        for name in str(asked_for(site, config.cluster)).split(","):
            partition = site.cluster.partition(name)
            if partition is not None:
                largest = max(largest, partition.total_nodes)
                together = script.share(config.cluster, len(trials))
                unique.update(dict.fromkeys(_down_now(partition, config, together)))
        places[("pretrained_checkpoint.restore_from_path", config.base_model)] = None
        places[("model.data.data_prefix", config.data_files["train"])] = None
    if largest > 1:  # on a cluster of one machine everything is shared
        unique.update(dict.fromkeys(disk.not_shared(places)))
    return list(unique)


def _warned_late(cluster: Cluster) -> list[Finding]:
    if cluster.signal_delay_s < cluster.time_limit_s:
        return []
    why = f"the warning comes as the trial starts, since its time limit is {cluster.time_limit_s:g} s"
    return [Finding("cluster.signal_delay_s", str(cluster.signal_delay_s), why, "lower it, or raise cluster.time")]


def asked_for(site: Site, cluster: Cluster) -> str | None:
    """The partition (or several, separated by commas) that a job asks for; by default the cluster's default one."""
    default = site.cluster.default_partition
    return cluster.partition or (default.name if default else None)


def _down_now(partition: Partition, config: TrialConfig, together: int) -> list[Finding]:
    nodes, gpus, memory = config.nodes, config.cluster.gpus * together, config.cluster.memory_mb
    kind = config.cluster.gpu_kind
    there = partition.nodes_with(gpus, memory, kind=kind)
    up = partition.nodes_with(gpus, memory, kind=kind, usable=True)
    if not up < nodes <= there:
        return []
    why = f"partition {partition.name} has {there} nodes that fit, but {up} can be used now; trials wait for the others"
    return [Finding("trainer.num_nodes", str(nodes), why, "`sinfo -R` says why they are down")]


def _partition(partition: Partition, config: TrialConfig, together: int) -> list[Finding]:
    """Findings about one partition. `together` is the number of trials that share a node."""
    cluster, nodes, of_one = config.cluster, config.nodes, config.cluster.gpus
    gpus = of_one * together
    where = f"partition {partition.name}"
    problems = []
    if partition.state != "UP":
        problems.append(Finding("cluster.partition", partition.name, f"is {partition.state}", "choose another"))
    if math.inf > cluster.time_limit_s > partition.max_time:
        limit = f"{partition.max_time / 60:g} minutes"
        problems.append(Finding("cluster.time", str(cluster.time), f"{where} allows {limit}", f"write at most {limit}"))
    kind, value = cluster.gpu_kind, str(cluster.gpus_per_node)
    most_gpus = partition.most_gpus(kind)
    has = f"{where} has {most_gpus} GPUs {f'of type {kind} ' if kind else ''}a node"
    if together > 1 and of_one <= most_gpus < gpus:
        remedy = f"write at most {most_gpus // of_one}"
        why = f"{has}, and each trial takes {of_one}"
        problems.append(Finding("cluster.trials_per_node", str(together), why, remedy))
        gpus = 0
    elif gpus > most_gpus:
        if kind and not most_gpus and partition.most_gpus():
            names = ", ".join(partition.gpu_kinds)
            remedy = f"its types: {names}" if names else f"its GPUs have no types: write {of_one}"
        else:
            remedy = "set trainer.devices to at most that" if most_gpus else "set it to null for CPU nodes"
        problems.append(Finding("cluster.gpus_per_node", value, has, remedy))
        gpus = 0
    memory = cluster.memory_mb
    with_gpus = f" with {gpus} GPUs" if gpus else ""
    if nodes > partition.nodes_with(gpus, memory, kind=kind) and nodes <= partition.nodes_with(gpus, kind=kind):
        largest = max((group.memory for group in partition.groups if group.gpus_of(kind) >= gpus), default=0.0)
        fit = partition.nodes_with(gpus, memory, kind=kind)
        why = f"{fit} nodes of {where}{with_gpus} have that much memory, {nodes} needed"
        remedy = f"its largest have {largest / 1024:g} GB: write at most that, or 0 for all that a node has"
        problems.append(Finding("cluster.mem_gb", f"{cluster.mem_gb:g}", why, remedy))
        memory = 0
    most = min(partition.max_nodes, partition.nodes_with(gpus, memory, kind=kind))
    if nodes > most:
        largest_job = int(most) if most < math.inf else partition.total_nodes
        why = f"{where} gives a job at most {largest_job} nodes{with_gpus}"
        problems.append(
            Finding("trainer.num_nodes", str(nodes), why, f"write at most {largest_job}, or another partition")
        )
    return problems


def _account(associations: list[Association], partition: Partition, cluster: Cluster) -> list[Finding]:
    """Findings about accounts and QoS, if the site uses them."""
    if not associations:
        return [
            Finding("cluster.account", "", "this cluster keeps accounts and you have none", "ask its administrators")
        ]
    mine = sorted({association.account for association in associations})
    account = _account_name(associations, cluster)
    problems = []
    if account not in mine:
        why = "you have no association with this account"
        return [Finding("cluster.account", account, why, f"yours: {', '.join(mine)}")]
    if not partition.admits_account(account):
        admits = ", ".join(sorted(partition.accounts or [])) or "other accounts"
        why = f"partition {partition.name} does not admit it"
        problems.append(
            Finding("cluster.account", account, why, f"it admits {admits}; choose another of {', '.join(mine)}")
        )
    allowed = frozenset[str]().union(*(a.qos for a in associations if a.account == account))
    if cluster.qos and allowed and cluster.qos not in allowed:
        why = f"account {account} may not use it"
        problems.append(Finding("cluster.qos", cluster.qos, why, f"it may use: {', '.join(sorted(allowed))}"))
    elif cluster.qos and not partition.admits_qos(cluster.qos):
        problems.append(
            Finding("cluster.qos", cluster.qos, f"partition {partition.name} does not admit it", "choose another")
        )
    return problems


def _account_name(associations: list[Association], cluster: Cluster) -> str:
    default = next((row.account for row in associations if row.default), None)
    return str(cluster.account or default or min(row.account for row in associations))


def _association(associations: list[Association], partition: Partition, cluster: Cluster) -> Association:
    """The association that applies to a job: the account's own for this partition, if the site has defined one."""
    account = _account_name(associations, cluster)
    rows = [row for row in associations if row.account == account and row.partition in ("", partition.name)]
    rows = rows or [row for row in associations if row.account == account]
    return max(rows, key=lambda row: row.partition == partition.name)


def _limits(association: Association, config: TrialConfig, trials: int) -> list[Finding]:
    """The account's limits for one job, and for all its jobs together. A job above either would wait for ever.

    The queries here return neither the limits of a QoS nor group limits of an account that are not the user's own. An
    array that exceeds those waits, and Slurm shows the reason (QOSMaxGRESPerUser, AssocGrpGRES, ...).
    """
    cluster, nodes, whose = config.cluster, config.nodes, f"account {association.account}"
    together = script.share(config.cluster, trials)
    who = "a trial asks" if together == 1 else f"{together} trials on a node ask"
    problems = []
    if math.inf > cluster.time_limit_s > association.max_wall:
        limit = f"{association.max_wall / 60:g} minutes"
        problems.append(Finding("cluster.time", str(cluster.time), f"{whose} allows {limit}", f"write at most {limit}"))
    requested = {
        "node": ("trainer.num_nodes", "nodes", nodes),
        "gres/gpu": ("cluster.gpus_per_node", "GPUs", together * nodes * cluster.gpus),
        "cpu": (
            "cluster.cpus_per_task",
            "CPUs",
            together * config.ranks * (cluster.cpus_per_task or 1),
        ),
        "mem": ("cluster.mem_gb", "MB", nodes * cluster.memory_mb),
    }
    for name, (key, unit, count) in requested.items():
        most = min(limits.get(name, math.inf) for limits in (association.max_per_job, association.group))
        if count > most:
            why = f"{whose} gives a job at most {most:g} {unit}; {who} for {count:g} over all its nodes"
            value = config.at(key)
            problems.append(Finding(key, str(value), why, "lower it or trainer.num_nodes, or use another account"))
    if math.ceil(trials / together) > association.max_submit:
        jobs = math.ceil(trials / together)
        why = f"may have {association.max_submit:g} jobs waiting and running, and this sweep would be {jobs} jobs"
        problems.append(Finding("cluster.account", association.account, why, "sweep over fewer values at a time"))
    return problems
