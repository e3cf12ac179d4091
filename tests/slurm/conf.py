"""The configuration files of a throw-away Slurm cluster, as text. Starting it is `tests.slurm.cluster`'s business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Shape:
    """What the cluster pretends to be. The machine may have fewer CPUs and less memory than its nodes claim."""

    nodes: int = 3
    cpus: int = 16
    """CPUs a node claims."""
    mem: int = 64000
    """MB a node claims. A job's default is its CPUs' share of it: a rank of NeMo needs 700 MB and more."""
    gpus: int = 8
    """Fake GPUs a node has. Jobs get CUDA_VISIBLE_DEVICES; no program will find a GPU behind it."""
    max_array_size: int = 1001
    """Slurm's default; the highest index is one less."""
    slurmd_timeout: int = 15
    """Seconds until a node that does not answer is DOWN and its jobs NODE_FAIL."""
    requeue_hold: int = 10
    """Seconds a requeued job waits before it may start again. Slurm's own default is 120 (cred_expire)."""
    min_job_age: int = 300
    """Seconds an ended job stays visible to squeue and scontrol; sacct keeps it."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Further keys of slurm.conf; they win over those below."""

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]


@dataclass(frozen=True)
class Places:
    """Where this cluster lives: one folder, one range of ports, one loopback network."""

    folder: Path
    host: str
    """Short name of this machine; slurmctld and slurmdbd insist on it."""
    user: str
    port: int
    """First port of this cluster's own 256; `port` itself is only held, to keep other clusters off the range."""
    own_hosts: bool
    """Each node has a host name of its own (needs root)."""

    @property
    def network(self) -> str:
        """Nodes are 127.x.0.1, 127.x.0.2, ...: ranks of two clusters on this machine cannot meet on one port."""
        return f"127.{self.port >> 8}.0"

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge.sock"

    @property
    def sql_socket(self) -> Path:
        """In a folder only this user may enter, so that the data base needs no password and no TCP port."""
        return self.folder / "sql" / "sql.sock"

    def log(self, daemon: str) -> Path:
        return self.folder / "log" / f"{daemon}.log"


def lines(settings: Mapping[str, object]) -> str:
    """`key=value` a line. Slurm's parser takes a value with blanks in double quotes and knows no way to escape one."""
    text = ""
    for key, value in settings.items():
        quoted = f'"{value}"' if any(letter in str(value) for letter in " #") else f"{value}"
        text += f"{key}={quoted}\n"
    return text


def slurm_conf(shape: Shape, places: Places) -> str:
    """slurm.conf: no systemd, no cgroups, quick timers; partitions main, short, dead and wide."""
    folder = places.folder
    settings: dict[str, object] = {
        "ClusterName": "lab",
        "SlurmctldHost": f"{places.host}(127.0.0.1)",
        "SlurmctldPort": places.port + 1,
        "SlurmUser": places.user,
        "SlurmdUser": places.user,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # cred_expire is also what a requeued job has to wait (man slurm.conf, AuthInfo)
        "AuthInfo": f"socket={places.munge_socket},cred_expire={shape.requeue_hold}",
        "StateSaveLocation": folder / "state",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.%n.pid",
        "SlurmdSpoolDir": folder / "spool" / "%n",
        "SlurmctldLogFile": places.log("slurmctld"),
        "SlurmdLogFile": places.log("%n"),
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=2",
        "JobAcctGatherParams": "OverMemoryKill",
        "MpiDefault": "none",
        "SwitchType": "switch/none",
        "SlurmdParameters": "config_overrides",  # nodes may claim more than the machine has
        "ReturnToService": 2,
        "SlurmdTimeout": shape.slurmd_timeout,
        "SlurmctldTimeout": 10,
        "BatchStartTimeout": 60,  # on two cores that train as well, a start may take long
        "KillWait": 5,
        "UnkillableStepTimeout": 300,  # 60 drains nodes after an outage of slurmctld
        "MinJobAge": shape.min_job_age,
        "WaitTime": 0,
        "InactiveLimit": 0,
        "OverTimeLimit": 0,
        "JobRequeue": 1,
        "MaxArraySize": shape.max_array_size,
        "MaxJobCount": 20000,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=2,bf_interval=2,sched_min_interval=100000,default_queue_depth=2000",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": shape.mem // shape.cpus,
        "PriorityType": "priority/multifactor",
        "PriorityWeightAge": 1000,
        "PriorityWeightQOS": 10000,
        "PreemptType": "preempt/qos",
        "PreemptMode": "REQUEUE",
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "127.0.0.1",
        "AccountingStoragePort": places.port + 2,
        "AccountingStoragePass": places.munge_socket,  # or sacctmgr hangs for minutes
        "AccountingStorageTRES": "gres/gpu",
        "AccountingStorageEnforce": "associations,limits,qos",
        "AccountingStoreFlags": "job_comment,job_script",
    }
    if shape.gpus:
        settings["GresTypes"] = "gpu"
    settings.update(shape.options)
    last = shape.nodes
    node = f"NodeName=node[1-{last}] NodeHostname={f'node[1-{last}]' if places.own_hosts else places.host}"
    node += f" NodeAddr={places.network}.[1-{last}] Port=[{places.port + 3}-{places.port + 2 + last}]"
    node += f" CPUs={shape.cpus} RealMemory={shape.mem} State=UNKNOWN"
    node += f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
    partitions = [
        "PartitionName=main Nodes=ALL Default=YES MaxTime=7-00:00:00 DefaultTime=30 State=UP",
        "PartitionName=short Nodes=ALL MaxTime=5 State=UP",
        "PartitionName=dead Nodes=ALL State=DOWN",
        "PartitionName=wide Nodes=ALL AllowAccounts=vip State=UP",
    ]
    return lines(settings) + "\n".join([node, *partitions]) + "\n"


def gres_conf(shape: Shape, places: Places) -> str:
    """gres.conf. Every GPU needs a File= that is a device: with Count= alone slurmd 22.05 calls its node INVAL."""
    if not shape.gpus:
        return "AutoDetect=off\n"
    files = places.folder / "dev" / f"nvidia[0-{shape.gpus - 1}]"
    return f'AutoDetect=off\nNodeName=node[1-{shape.nodes}] Name=gpu File="{files}"\n'


def cgroup_conf(version: tuple[int, ...]) -> str:
    """cgroup.conf. Nothing here uses cgroups; slurmd 23.11 and later looks for them all the same unless told not to."""
    return lines({"CgroupPlugin": "disabled"}) if version >= (23, 11) else ""


def slurmdbd_conf(places: Places) -> str:
    """slurmdbd.conf. With StorageHost=localhost the data base is found by the socket in MYSQL_UNIX_PORT."""
    return lines(
        {
            "DbdHost": places.host,
            "DbdAddr": "127.0.0.1",
            "DbdPort": places.port + 2,
            "SlurmUser": places.user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={places.munge_socket}",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",
            "StorageUser": "root",
            "StorageLoc": "slurm_acct_db",
            "LogFile": places.log("slurmdbd"),
            "PidFile": places.folder / "slurmdbd.pid",
        }
    )


def hosts(shape: Shape, places: Places) -> str:
    """/etc/hosts as the nodes see it: a rank finds node1 as it would on a real cluster."""
    nodes = [f"{places.network}.{number} node{number}" for number in range(1, shape.nodes + 1)]
    return "\n".join([f"127.0.0.1 localhost {places.host}", *nodes]) + "\n"
