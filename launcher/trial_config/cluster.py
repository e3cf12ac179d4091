"""`cluster`: what a trial asks Slurm for, or how this machine runs it, and how often it goes on after a fault."""

from __future__ import annotations

import math
import shlex
import sys
from typing import Literal

from pydantic import Field

from launcher.trial_config.types import FreeKeys, Gpus, Lines, Number, Section, Text, TimeLimit
from launcher.units import parse_time_limit


class Container(Section):
    """`cluster.container`."""

    runtime: Literal["pyxis", "apptainer"] | None = None
    image: Text | None = None
    mounts: Lines = Field(default_factory=list, description="folders the container sees: PATH or OUTSIDE:INSIDE")


class Cluster(Section):
    """`cluster`. Which keys there are depends on the file in configs/cluster/; all but the name may be absent."""

    name: Text
    # this machine
    trials_at_once: int | None = Field(None, ge=1, description="trials side by side on this machine")
    memory_gb_per_rank: Number | None = Field(None, gt=0, description="GB that a rank takes at its peak")
    # sbatch's own options
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    time: TimeLimit | None = Field(None, description="time limit of one trial; null: the partition's own")
    nodelist: Text | None = None
    exclude: Text | None = None
    exclusive: bool | Literal["user", "mcs"] | None = None
    mail_type: Text | None = None
    mail_user: Text | None = None
    comment: Text | None = None
    gpus_per_node: Gpus | None = Field(None, description="follows trainer.devices; with a type: a100:2")
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs a rank; null: its GPU's share of a node, at most 8")
    mem_gb: Number | None = Field(None, ge=0, description="GB a node; null: its GPUs' share; 0: all of it (--mem=0)")
    stages_partition: Text | None = Field(
        None, description="partition of the conversion, the data and the report, which use no GPU; null: the trials'"
    )
    # estimates
    gpu_memory_gb: Number | None = Field(None, gt=0, description="GiB of one GPU; for a warning only")
    tokens_per_second: Number | None = Field(None, gt=0, description="training tokens a second and rank, for estimates")
    # the array
    trials_per_node: int = Field(
        1, ge=1, description="trials of one node that an element of the array runs side by side"
    )
    array_parallelism: int | None = Field(None, ge=1, description="trials that may run at once")
    # faults
    signal_delay_s: int = Field(120, ge=1, description="seconds between the warning and the time limit")
    requeue: bool = Field(True, description="go on in the same job; false: in a new one, which waits its turn anew")
    max_restarts: int = Field(3, ge=0, description="starts after a crash, a hang, or too little memory")
    max_timeouts: int = Field(20, ge=0, description="starts after a time limit")
    max_node_failures: int = Field(5, ge=0, description="starts after a node was lost or found unfit")
    hang_after: Number | None = Field(
        None, gt=0, description="seconds without a step that are a hang; null: as measured"
    )
    # the script
    setup: Lines = Field(default_factory=list, description="shell lines before srun")
    teardown: Lines = Field(default_factory=list, description="shell lines after srun")
    srun_args: Lines = Field(default_factory=list, description="arguments for srun")
    python: Text | None = Field(None, description="shell words that run Python in the job")
    environment: FreeKeys = Field(default_factory=dict)
    sbatch: FreeKeys = Field(default_factory=dict)
    container: Container = Field(default_factory=Container)

    @property
    def is_slurm(self) -> bool:
        """Whether trials are submitted to Slurm. Only then there is a number of trials that may run at once."""
        return self.array_parallelism is not None

    @property
    def is_local(self) -> bool:
        """Whether trials run on this machine."""
        return self.name == "local"

    @property
    def time_limit_s(self) -> float:
        """Time limit of one trial in seconds; infinite where the partition's own holds."""
        return math.inf if self.time is None else parse_time_limit(self.time)

    @property
    def python_words(self) -> str:
        """Shell words that run Python in the job: by default the Python that submits."""
        return self.python or shlex.quote(sys.executable)

    @property
    def variables(self) -> dict[str, str]:
        """`environment` as text."""
        return {str(name): str(value) for name, value in self.environment.items()}

    @property
    def other_clusters(self) -> str:
        """The clusters that sbatch is to choose from (`sbatch.clusters`); "" if it is to take this one."""
        return next((str(value) for option, value in self.sbatch.items() if option in ("clusters", "cluster", "M")), "")

    @property
    def gpus(self) -> int:
        """GPUs a node that one trial asks for."""
        return int(str(self.gpus_per_node or 0).rpartition(":")[2])

    @property
    def gpu_kind(self) -> str:
        """The type of those GPUs; "" where any will do."""
        return str(self.gpus_per_node or "").rpartition(":")[0]

    @property
    def memory_mb(self) -> int:
        """MB a node that are asked for, as sbatch counts them; 0 where nothing is."""
        return math.ceil((self.mem_gb or 0) * 1024)
