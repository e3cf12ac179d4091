"""The cores and the memory that a trial requests by default: its GPUs' share of a node.

Without a request, most sites give each task one core, which Python, autograd and NCCL would have to share, and too
little memory per core for a rank that loads a large model.
"""

from __future__ import annotations

from launcher.check.cluster_limits import Site
from launcher.slurm.site import NodeGroup, Partition
from launcher.trial_config.cluster import Cluster
from launcher.trial_config.config import TrialConfig

#: A rank's threads: Python, autograd, NCCL, CUDA, saving. More cores would stay idle.
MOST_CORES = 8
#: Slurm counts what it keeps for itself (CoreSpecCount, MemSpecLimit) among a node's cores and memory in sinfo.
_FREE = 0.9
_MEMORY_OPTIONS = {"mem", "mem_per_cpu", "mem_per_gpu"}
_CORE_OPTIONS = {"cpus_per_gpu", "cores_per_socket", "sockets_per_node", "ntasks_per_core", "threads_per_core", "hint"}


def with_request(site: Site, trial: TrialConfig, share: int) -> Cluster:
    """The trial's `cluster`, with cpus_per_task and mem_gb added where they are known and not set otherwise.

    `share` trials run side by side on a node. Nothing is added without GPUs, because there is no share then; nor where
    the user has set a value, in `cluster` or `cluster.sbatch`; nor where the site's own rules decide (a maximum memory,
    defaults per GPU, limits of the account).
    """
    cluster = trial.cluster
    options = {str(option).replace("-", "_") for option in cluster.sbatch}
    if not cluster.gpus or any(option.startswith(("gres", "gpus")) for option in options - {"gres_flags"}):
        return cluster
    partitions = _partitions(site, cluster.partition)
    gpus = cluster.gpus * share
    groups = [group for partition in partitions for group in partition.groups if sum(group.gpus.values()) >= gpus]
    if not groups:
        return cluster
    limited = _limited_by_account(site)
    added: dict[str, int] = {}
    decided = "cpu" in limited or any(partition.cores_by_site for partition in partitions)
    if not decided and cluster.cpus_per_task is None and not options & _CORE_OPTIONS:
        ranks = trial.ranks_per_node * share
        cores = int(min(group.cpus * _part(group, gpus, cluster) for group in groups) / ranks)
        added["cpus_per_task"] = max(1, min(MOST_CORES, cores))
    decided = "mem" in limited or any(partition.memory_by_site for partition in partitions)
    if not decided and site.cluster.memory_is_allocated and cluster.mem_gb is None:
        memory = int(min(group.memory * _part(group, gpus, cluster) for group in groups) / 1024)
        if memory and not options & _MEMORY_OPTIONS:
            added["mem_gb"] = memory
    return cluster.model_copy(update=added)


def _partitions(site: Site, named: str | None) -> list[Partition]:
    """The partitions that a trial may run in: those named, else the default one."""
    default = site.cluster.default_partition
    names = named.split(",") if named else [default.name] if default else []
    partitions = [site.cluster.partition(name) for name in names]
    return [partition for partition in partitions if partition is not None]


def _part(group: NodeGroup, gpus: int, cluster: Cluster) -> float:
    """The part of a node that belongs to `gpus` of its GPUs."""
    return _FREE if cluster.exclusive else _FREE * gpus / sum(group.gpus.values())


def _limited_by_account(site: Site) -> set[str]:
    """Resources that are limited for the user's accounts. A job that requests more would wait for ever."""
    if not site.enforces_limits:
        return set()
    if site.accounts_unknown:  # sbatch works without the accounting; assume that both are limited
        return {"cpu", "mem"}
    return {name for row in site.associations or [] for limits in (row.max_per_job, row.group) for name in limits}
