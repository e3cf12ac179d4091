"""What a stage of a pipeline asks Slurm for, and whether this cluster would run it: one process on one node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from launcher.check import cluster_limits
from launcher.findings import Finding
from launcher.slurm import client, profile, rows
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import TrialConfig

#: Beginnings of options in cluster.sbatch that concern GPUs and the shape of a trial.
OF_TRIALS = ("gres", "gpus", "ntasks", "tres", "nodes", "mem", "cpus", "exclusive", "array")
#: What a stage asks for by itself, whatever these keys say.
_ITS_OWN = ("cluster.mem_gb", "cluster.cpus_per_task", "trainer.num_nodes")


def own_shape(cluster: Cluster, mem_gb: float | None = None) -> Cluster:
    """The trials' `cluster` without requests for GPUs or several nodes; in cluster.stages_partition, if that is set.

    Another partition's nodes need not have what the trials' constraint names, nor be in their reservation.
    """
    free = {key: value for key, value in cluster.sbatch.items() if not str(key).startswith(OF_TRIALS)}
    changes: dict[str, object] = {
        "gpus_per_node": None,
        "exclusive": None,
        "nodelist": None,
        "mem_gb": mem_gb,
        "trials_per_node": 1,
        "sbatch": free,
    }
    per_cpu = next((value for key, value in cluster.sbatch.items() if key.replace("-", "_") == "mem_per_cpu"), None)
    if per_cpu is not None and mem_gb is not None:
        # The site wants memory to be requested per CPU: request enough CPUs for the stage's memory.
        cpus = math.ceil(mem_gb * 1024 / (rows.megabytes(str(per_cpu)) or 1))
        changes |= {"mem_gb": None, "sbatch": {**free, "mem_per_cpu": per_cpu}, "cpus_per_task": cpus}
    if cluster.stages_partition not in (None, cluster.partition):
        changes |= {"partition": cluster.stages_partition, "constraint": None, "reservation": None}
    return cluster.model_copy(update=changes)


def within_time(site: cluster_limits.Site, cluster: Cluster) -> Cluster:
    """The trials' `cluster` with a time limit that the stages' partition allows: Slurm would never start them else."""
    if cluster.other_clusters:
        return cluster
    asked = own_shape(cluster)
    asked = asked.model_copy(update=profile.filled(dict(asked)))
    named = [site.cluster.partition(name) for name in str(cluster_limits.asked_for(site, asked)).split(",")]
    most = max((partition.max_time for partition in named if partition), default=math.inf)
    if not most < asked.time_limit_s < math.inf:
        return cluster
    return cluster.model_copy(update={"time": max(1, int(most // 60))})


def findings(site: cluster_limits.Site, config: TrialConfig, stages: Mapping[str, float]) -> list[Finding]:
    """Why this cluster would refuse a stage, or accept it and never start it. `stages`: GB of memory by name."""
    try:
        cluster, memory = within_time(site, config.cluster), site.cluster.memory_is_allocated
    except client.SlurmError:  # the checks of the trials say so
        return []
    trainer = config.trainer.model_copy(update={"num_nodes": 1, "devices": 1})
    unique: dict[Finding, None] = {}
    for name, mem_gb in stages.items():
        own = own_shape(cluster, mem_gb if memory else None)
        probe = config.model_copy(update={"cluster": own, "trainer": trainer})
        for finding in cluster_limits.findings(site, probe):
            unique[_of_stage(finding, name, mem_gb, cluster.stages_partition)] = None
    return list(unique)


def _of_stage(finding: Finding, name: str, mem_gb: float, partition: str | None) -> Finding:
    """The finding about a trial of this shape, with the key that the user can change."""
    key = "cluster.stages_partition"
    if finding.where in _ITS_OWN:
        why = f"{name} asks for {mem_gb:g} GB: {finding.why}"
        return Finding(key, partition or "null", why, "name a partition with larger nodes")
    if not partition:
        return finding
    if finding.where == "cluster.partition":
        return replace(finding, where=key)
    return replace(finding, why=f"for the stages: {finding.why}", remedy=f"{finding.remedy}; or another {key}")
