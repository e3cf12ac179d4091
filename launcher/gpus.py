"""The GPUs of this machine, as nvidia-smi knows them. No torch, no CUDA."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_FIELDS = ("name", "memory.total", "driver_version", "compute_cap")
_PATIENCE_S = 4.0  # without persistence mode the driver takes a second or two to wake up


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    driver: str
    compute: float | None
    """Compute capability, such as 8.0; None if the driver is too old to report it."""

    @property
    def bf16(self) -> bool:
        """Whether it has bfloat16 units: Ampere (8.0) and later."""
        return self.compute is not None and self.compute >= 8.0


class NoAnswer(Exception):
    """nvidia-smi exists but fails, mostly because the driver does not match the kernel."""


def query() -> list[Gpu]:
    """Every GPU of this machine; an empty list without nvidia-smi. Raises NoAnswer if nvidia-smi fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, errors="replace")
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"nvidia-smi does not answer in {_PATIENCE_S:.0f} s") from None
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()
        raise NoAnswer(f"nvidia-smi: {output[0] if output else f'exit code {done.returncode}'}")
    return rows(done.stdout)


def rows(text: str) -> list[Gpu]:
    """Parse `nvidia-smi --query-gpu=... --format=csv,noheader,nounits`. Raises NoAnswer if a line cannot be parsed."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            name, memory, driver, compute = parts
            gpus.append(Gpu(name, float(memory) / 1024, driver, float(compute) if compute[:1].isdigit() else None))
        except ValueError:
            raise NoAnswer(f"cannot parse the line {line!r} of nvidia-smi") from None
    return gpus
