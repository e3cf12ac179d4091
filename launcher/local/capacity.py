"""What a trial needs, and how many trials this machine has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.dotted_keys import at
from launcher.findings import Finding
from launcher.machine import Machine

MEMORY_GB_PER_RANK = 3.0


@dataclass(frozen=True)
class Need:
    """What one trial needs, according to its config. Another engine's config may lack all keys but these."""

    ranks: int
    memory_gb: float
    accelerator: str

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Need:
        ranks = int(at(config, "trainer.devices") or 1)
        memory_gb = float(at(config, "cluster.memory_gb_per_rank") or MEMORY_GB_PER_RANK)
        return cls(ranks, ranks * memory_gb, str(at(config, "trainer.accelerator") or "auto"))

    def on_gpu(self, machine: Machine) -> bool:
        return bool(machine.gpus) and self.accelerator != "cpu"


def check(config: Mapping[str, object], machine: Machine) -> list[Finding]:
    """Reasons why a trial cannot run on this machine."""
    need = Need.of(config)
    nodes = int(at(config, "trainer.num_nodes") or 1)
    problems = []
    if nodes > 1:
        why = "this machine is one node"
        problems.append(Finding("trainer.num_nodes", str(nodes), why, "set it to 1, or choose a Slurm cluster"))
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
