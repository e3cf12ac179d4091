"""What a Slurm cluster has and what a user may do on it: partitions, configuration, accounts. Text in, rows out.

As in `launcher.slurm.rows`: checked against Slurm 22.05.8, and nothing here runs a command.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.slurm.rows import NOTHING, SEPARATOR, duration, gpus, limit, megabytes, records, resources

# -- partitions, configuration -----------------------------------------------------------------------------------------

_MOST_CORES = ("MaxCPUsPerNode", "MaxCPUsPerSocket")
_MOST_MEMORY = ("MaxMemPerNode", "MaxMemPerCPU")
NODE_FIELDS = ("%R", "%T", "%D", "%c", "%m", "%G")
NODE_FORMAT = SEPARATOR.join(NODE_FIELDS)  # for sinfo -o: partition, state, nodes, CPUs, MB, GRES


@dataclass(frozen=True)
class NodeGroup:
    """Identical nodes of a partition."""

    state: str
    """idle, mixed, allocated, down, drained, ... without sinfo's suffix (`down*`: does not answer)."""
    count: int
    cpus: int
    memory: float
    """MB a node."""
    gpus: dict[str, int]
    """GPUs a node, by type; the type is "" if the site names none."""

    def gpus_of(self, kind: str = "") -> int:
        """GPUs a node of one type; of all types for "". Slurm compares types without regard to case."""
        return sum(count for name, count in self.gpus.items() if kind.lower() in ("", name.lower()))

    @property
    def usable(self) -> bool:
        """Whether a job could get these nodes without an administrator's help. (`inval`: configured wrongly.)"""
        return not self.state.startswith(("down", "drain", "fail", "inval", "unk", "maint", "futu"))


@dataclass(frozen=True)
class Partition:
    """A partition: which jobs it admits and what its nodes have."""

    name: str
    state: str
    """UP, DOWN, DRAIN or INACTIVE; only UP starts jobs."""
    default: bool
    max_time: float
    default_time: float | None
    max_nodes: float
    """Most nodes that a job may use; inf: no limit."""
    total_nodes: int
    accounts: frozenset[str] | None
    """The accounts it admits; None: all but `denied_accounts`."""
    denied_accounts: frozenset[str]
    qos: frozenset[str] | None
    denied_qos: frozenset[str]
    groups: tuple[NodeGroup, ...]
    cores_by_site: bool = False
    """Whether the site itself decides how many cores a job has: by its GPUs (DefCpuPerGPU), or at most so many."""
    memory_by_site: bool = False
    """The same for memory (DefMemPerGPU, MaxMemPerNode, MaxMemPerCPU)."""

    def admits_account(self, account: str) -> bool:
        return account not in self.denied_accounts and (self.accounts is None or account in self.accounts)

    def admits_qos(self, qos: str) -> bool:
        return qos not in self.denied_qos and (self.qos is None or qos in self.qos)

    def most_gpus(self, kind: str = "") -> int:
        """GPUs of its best equipped nodes: those of one type, or all for ""."""
        return max((group.gpus_of(kind) for group in self.groups), default=0)

    @property
    def gpu_kinds(self) -> list[str]:
        """The types of its GPUs that the site names."""
        return sorted({kind for group in self.groups for kind in group.gpus if kind})

    def nodes_with(self, gpus: int = 0, memory: float = 0, cpus: int = 0, kind: str = "", usable: bool = False) -> int:
        """How many of its nodes have at least this much; memory in MB.

        kind: the type of the GPUs, "" for any. usable: count only nodes usable now.
        """
        fit = (g for g in self.groups if g.gpus_of(kind) >= gpus and g.memory >= memory and g.cpus >= cpus)
        return sum(group.count for group in fit if group.usable or not usable)


@dataclass(frozen=True)
class SlurmCluster:
    """What a cluster allows and has."""

    settings: dict[str, str]
    """`scontrol show config`, as written there."""
    partitions: list[Partition]

    @property
    def name(self) -> str:
        return self.settings["ClusterName"]

    @property
    def max_array_size(self) -> int:
        """An array's highest index is one less. It does not limit the number of elements."""
        return int(self.settings["MaxArraySize"])

    @property
    def memory_is_allocated(self) -> bool:
        """Whether jobs are given memory of their own (slurm.conf(5), SelectTypeParameters), and not all of a node's."""
        return "memory" in self.settings.get("SelectTypeParameters", "").lower()

    @property
    def default_partition(self) -> Partition | None:
        return next((partition for partition in self.partitions if partition.default), None)

    def partition(self, name: str) -> Partition | None:
        return next((partition for partition in self.partitions if partition.name == name), None)


def node_groups(text: str) -> dict[str, list[NodeGroup]]:
    """Rows of `sinfo -a -e -h -o NODE_FORMAT`, by partition."""
    groups: dict[str, list[NodeGroup]] = {}
    for name, word, count, cpus, memory, gres in records(text, len(NODE_FIELDS)):
        group = NodeGroup(word.rstrip("*~#!%$@^-+"), int(count), int(cpus.rstrip("+")), megabytes(memory), gpus(gres))
        groups.setdefault(name, []).append(group)
    return groups


def partitions(text: str, groups: dict[str, list[NodeGroup]]) -> list[Partition]:
    """Lines of `scontrol -o show partition`, joined with sinfo's `node_groups`.

    `text` may hold `scontrol show config` as well: what it sets for the whole cluster counts for each partition.
    """
    partitions = []
    whole = settings(text)
    for line in text.splitlines():
        if not line.startswith("PartitionName="):
            continue
        keys = dict(item.split("=", 1) for item in line.split() if "=" in item)
        name = keys["PartitionName"]
        partitions.append(
            Partition(
                name=name,
                state=keys["State"],
                default=keys["Default"] == "YES",
                max_time=math.inf if (seconds := duration(keys["MaxTime"])) is None else seconds,
                default_time=duration(keys["DefaultTime"]),
                max_nodes=limit(keys["MaxNodes"]),
                total_nodes=int(keys["TotalNodes"]),
                accounts=_names(keys.get("AllowAccounts", "ALL")),
                denied_accounts=_names(keys.get("DenyAccounts", "")) or frozenset(),
                qos=_names(keys.get("AllowQos", "ALL")),
                denied_qos=_names(keys.get("DenyQos", "")) or frozenset(),
                groups=tuple(groups.get(name, ())),
                cores_by_site=any(_decides(of, _MOST_CORES, "DefCpuPerGPU") for of in (whole, keys)),
                memory_by_site=any(_decides(of, _MOST_MEMORY, "DefMemPerGPU") for of in (whole, keys)),
            )
        )
    return partitions


def _decides(keys: Mapping[str, str], limits: Sequence[str], default: str) -> bool:
    """Whether settings of a partition or of the whole cluster have one of the `limits`, or a `default` for each GPU."""
    limited = any(keys.get(name, "UNLIMITED") not in ("UNLIMITED", "0") for name in limits)
    return limited or default.lower() in keys.get("JobDefaults", "").lower()


def _names(text: str) -> frozenset[str] | None:
    """A list of names; None for ALL."""
    return None if text == "ALL" else frozenset(name for name in text.split(",") if name not in NOTHING)


def settings(text: str) -> dict[str, str]:
    """The settings in `scontrol show config`, whose lines are `MaxArraySize            = 1001`."""
    pairs = (line.partition(" = ") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals and " " not in key.strip()}


# -- accounts ----------------------------------------------------------------------------------------------------------

ASSOCIATION_FIELDS = (
    "cluster", "account", "partition", "defaultaccount", "qos", "defaultqos", "maxsubmitjobs", "maxwall", "maxtres",
    "grptres",
)  # fmt: skip


@dataclass(frozen=True)
class Association:
    """What a user may do under one account (and, where the site says so, in one partition only)."""

    cluster: str
    account: str
    partition: str
    """Empty: any partition."""
    default: bool
    """Whether jobs that name no account use this one."""
    qos: frozenset[str]
    default_qos: str
    max_submit: float
    """Jobs that may wait or run at once; each element of an array counts."""
    max_wall: float
    max_per_job: dict[str, float]
    """The most that one job may have, such as {"gres/gpu": 8, "node": 4}."""
    group: dict[str, float]
    """The most that all its jobs may have at once. A job that asks for more waits for ever (AssocGrpGRES)."""


def associations(text: str) -> list[Association]:
    """Rows of `sacctmgr -n -P show user NAME withassoc format=...`."""
    rows = []
    for parts in records(text, len(ASSOCIATION_FIELDS)):
        cluster, account, partition, default, qos, default_qos, submit, wall, per_job, group = parts
        rows.append(
            Association(
                cluster=cluster,
                account=account,
                partition=partition,
                default=account == default,
                qos=_names(qos) or frozenset(),
                default_qos=default_qos,
                max_submit=limit(submit),
                max_wall=math.inf if (seconds := duration(wall)) is None else seconds,
                max_per_job=resources(per_job),
                group=resources(group),
            )
        )
    return rows
