"""Where the parts of day_one.py work: trials of one rank or more in processes of their own, all bounded in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.minimal_trial import write_pairs, write_trial

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SHORT = {"evaluation.kl_pairs": 0, "evaluation.samples": 0}


class Failed(Exception):
    """A part's check failed, a process of it failed, or its time is over."""


@dataclass
class Day:
    """Where the parts work, and on what."""

    work: Path
    rehearse: bool
    end: float = 0.0
    """time.monotonic() at which the current part's time is over."""
    found: dict[str, Any] = field(default_factory=dict)
    """What the current part has measured so far."""

    @property
    def accelerator(self) -> str:
        return "cpu" if self.rehearse else "gpu"

    def tiny(self) -> Path:
        from data_prep import convert_checkpoint

        return convert_checkpoint.convert("tiny", self.work / "models" / "tiny.nemo", verify=False)

    def pairs(self, count: int = 64) -> dict[str, Path]:
        held_out = write_pairs(self.work / "validation.jsonl", 8, start=1000)
        return {"train": write_pairs(self.work / "train.jsonl", count), "validation": held_out, "test": held_out}

    def trial(self, name: str, nemo: Path, pairs: dict[str, Path], **changes: Any) -> Path:
        """The folder of a trial, in bf16 unless `changes` say otherwise; dots of keys are written as `__`."""
        keys = {key.replace("__", "."): value for key, value in changes.items()}
        keys["trainer.dpo.save_interval"] = keys["trainer.dpo.val_check_interval"]
        common = {**SHORT, "trainer.accelerator": self.accelerator, "trainer.precision": "bf16"}
        return write_trial(self.work / name, "tiny", nemo, pairs, common | keys)

    def start(self, folder: Path, options: Sequence[str] = (), **env: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}", **env}
        command = [sys.executable, "-m", "tests.gpu.one_rank", str(folder), *options]
        with (folder / f"log{env.get('RANK', '')}.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=REPOSITORY)

    def wait(self, folder: Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Raises Failed where a process fails or the part's time is over; no process outlives this."""
        try:
            for process in processes:
                process.wait(max(1.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Failed(f"{folder.name}: the part's time is over") from None
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        codes = [process.returncode for process in processes]
        if any(codes):
            said = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(folder.glob("log*.txt")))
            raise Failed(f"{folder.name}: exit codes {codes}: {said}")

    def run(self, folder: Path, options: Sequence[str] = (), **env: str) -> dict[tuple[str, int], float]:
        """One rank to its end; {(metric, step): value}."""
        self.wait(folder, [self.start(folder, options, **env)])
        return metrics(folder)

    def measured(self, folder: Path, *options: str) -> list[dict[str, float]]:
        """One rank to its end; what one_rank.py measured of each step."""
        file = folder / "measured.jsonl"
        self.run(folder, ["--measure", str(file), *options], PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
        return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = ("train/", "val/")
    found = {(key, line["step"]): line[key] for line in lines for key in line if key.startswith(shown)}
    return {key: value for key, value in found.items() if "time" not in key[0]}


def furthest(one: dict[Any, float], other: dict[Any, float]) -> float:
    if one.keys() != other.keys():
        raise Failed(f"metrics of one run alone: {sorted(one.keys() ^ other.keys())[:5]}")
    return max(abs(one[key] - other[key]) for key in one)


def require(condition: bool, why: str) -> None:
    if not condition:
        raise Failed(why)
