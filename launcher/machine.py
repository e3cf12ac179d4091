"""What this machine has free: cores, memory, GPUs. The limits of a container or a batch job are respected."""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
#: How often an idle thread of GNU OpenMP, which torch computes with, looks for work before it sleeps. It is 0.3 million
#: unless set (libgomp's manual), for which it holds a core that others need: on two busy cores, answers took over ten
#: times as long.
_SPINS = "2000"
_CGROUP = Path("/sys/fs/cgroup")
#: Instruction sets for bfloat16 arithmetic (two of x86, one of Arm), as /proc/cpuinfo names them.
BF16_UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True)
class Machine:
    """The resources that may be used."""

    cores: int
    memory_gb: float
    """Available now, in GB (1e9 bytes)."""
    gpus: tuple[str, ...] = ()
    """GPU names as in CUDA_VISIBLE_DEVICES."""


def look() -> Machine:
    """Read the current state of this machine."""
    return Machine(cores(), available_memory_gb(), gpus())


def share_cores(env: MutableMapping[str, str]) -> None:
    """Have idle threads give up their core soon; what the user has set is kept.

    `env` is the environment of a process that has not loaded torch.
    """
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", _SPINS)


def cores() -> int:
    """Cores that this process may run on: its affinity, and the CPU quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(allowed, int(quota))) if quota else allowed


def _cgroup_quota() -> float | None:
    """CPU quota of cgroup v2 or v1, in cores; None without a limit."""
    quota, period = (_words("cpu.max") + ["", ""])[:2]  # v2: "200000 100000" or "max 100000"
    if not quota:
        quota, period = (_words("cpu/cpu.cfs_quota_us") + _words("cpu/cpu.cfs_period_us") + ["", ""])[:2]
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def available_memory_gb() -> float:
    """Memory in GB (1e9 bytes) that new processes can use without swapping, within the container's limit."""
    host = _meminfo()
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _words(limit_file), _words(used_file)
        if limit and used and limit[0].isdigit() and used[0].isdigit():  # "max" means no limit
            return max(0, min(host, int(limit[0]) - int(used[0]))) / GB
    return host / GB


def _meminfo() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
    except FileNotFoundError:  # not Linux
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    available = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(available.group(1)) * 1024 if available else 0


def _words(name: str) -> list[str]:
    try:
        return (_CGROUP / name).read_text().split()
    except OSError:  # without this cgroup controller there is no such limit
        return []


def gpus() -> tuple[str, ...]:
    """NVIDIA GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all. Needs no driver and no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        valid = names.index("-1") if "-1" in names else len(names)  # CUDA ignores the list from -1 on
        return tuple(name for name in names[:valid] if name)
    return tuple(str(place) for place, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 units; without them bf16 is several times slower than fp32. False if unknown."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return not BF16_UNITS.isdisjoint(flags.split())


def cpu_name() -> str:
    return _cpuinfo("model name") or os.uname().machine


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's /proc/cpuinfo, "" if there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
