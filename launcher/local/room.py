"""What a trial needs, and how many trials this machine has room for."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.findings import Finding
from launcher.machine import Machine
from launcher.trial_config.config import TrialConfig

MEMORY_GB_PER_RANK = 3.0


@dataclass(frozen=True)
class Need:
    """What one trial needs, according to its config."""

    ranks: int
    memory_gb: float
    accelerator: str

    @classmethod
    def of(cls, config: TrialConfig) -> Need:
        memory_gb = config.cluster.memory_gb_per_rank or MEMORY_GB_PER_RANK
        return cls(config.ranks_per_node, config.ranks_per_node * memory_gb, config.trainer.accelerator)

    def on_gpu(self, machine: Machine) -> bool:
        return bool(machine.gpus) and self.accelerator != "cpu"


def check(config: TrialConfig, machine: Machine) -> list[Finding]:
    """Reasons why a trial cannot run on this machine."""
    need = Need.of(config)
    problems = []
    if config.nodes > 1:
        why = "this machine is one node"
        problems.append(Finding("trainer.num_nodes", str(config.nodes), why, "set it to 1, or choose a Slurm cluster"))
    if need.on_gpu(machine) and need.ranks > len(machine.gpus):
        why = f"this machine has {len(machine.gpus)} GPU{'s' if len(machine.gpus) > 1 else ''}"
        remedy = f"set it to at most {len(machine.gpus)}, or trainer.accelerator=cpu"
        problems.append(Finding("trainer.devices", str(need.ranks), why, remedy))
    return problems


def slots_for(need: Need, machine: Machine) -> int:
    """How many such trials fit on the machine at once, by cores (one per rank), memory and GPUs; at least one."""
    bounds = [machine.cores // need.ranks, int(machine.memory_gb // need.memory_gb)]
    if need.on_gpu(machine):
        bounds.append(len(machine.gpus) // need.ranks)
    return max(1, min(bounds))
