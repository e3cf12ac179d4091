"""A login node without a cluster: Slurm's commands answer as a real 22.05.8 did; sbatch notes when it was called."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.unit.conftest import row, write_nemo

ROOT = Path(__file__).resolve().parents[2]
BETA = "model.dpo.ref_policy_kl_penalty"
#: Both apps are given these, and as many betas as there are to be trials.
WORDS = ("model=tiny", "data=sample", "cluster=slurm", "trainer.num_nodes=2", "trainer.devices=2")
#: By the arguments that tell one question from another.
_ANSWERS = {"scontrol": "cluster", "sinfo": "cluster 2", "sacctmgr": "associations"}
_PATIENCE = 900.0  # seconds for one submission


@dataclass(frozen=True)
class Submission:
    """One command, from its start to its call of sbatch."""

    seconds: float
    peak_mb: float
    """Largest resident memory of the process, MB (1e6 bytes); 0 where it was ended at its call of sbatch."""
    commands: dict[str, int]
    """How often each of Slurm's commands was called."""
    stdout: str


class LoginNode:
    """A folder with a model, data, and Slurm's commands in bin/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "calls"
        _files(folder)
        for name, label in _ANSWERS.items():
            answer = self.bin / f"{name}.answer"
            answer.write_text(_recorded()[label])
            self._command(name, f"cat {shlex.quote(str(answer))}")
        self._command("srun", "exit 1")  # submitit looks whether it is there
        # submitit reads the id out of the sentence
        self._command("sbatch", 'case $1 in --parsable) echo 4711;; *) echo "Submitted batch job 4711";; esac')
        self.runs = 0

    def _command(self, name: str, text: str) -> None:
        script = self.bin / name
        script.write_text(f"#!/bin/sh\necho {name} $(date +%s.%N) >>{shlex.quote(str(self.log))}\n{text}\n")
        script.chmod(0o755)

    def ours(self, trials: int, python: Sequence[str] = ()) -> Submission:
        """`python launcher/main.py -m ...`, to its end."""
        return self._submit([*(python or [str(ROOT / "launcher" / "main.py")]), "-m", *self._words(trials)], False)

    def stock(self, trials: int) -> Submission:
        """The stock launcher and Hydra's own sweeper; ended at its call of sbatch, after which it waits for results."""
        own = ("hydra/launcher=submitit_slurm", "hydra/sweeper=basic")
        return self._submit([str(Path(__file__).with_name("stock_app.py")), "-m", *self._words(trials), *own], True)

    def _words(self, trials: int) -> list[str]:
        self.runs += 1
        betas = ",".join(f"{number / 1000:g}" for number in range(1, trials + 1))
        return [f"{BETA}={betas}", *WORDS, f"hydra.sweep.dir={self.folder}/sweep{self.runs}"]

    def _submit(self, words: list[str], stop: bool) -> Submission:
        self.log.unlink(missing_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        env |= {"PATH": f"{self.bin}:{env.get('PATH', os.defpath)}", "SLURM_CONF": os.devnull}
        output = self.folder / "output"
        with output.open("wb") as stream:
            began = time.time()
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.folder, env=env, stdout=stream, stderr=subprocess.STDOUT
            )
            peak = self._wait(process, stop)
        calls = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        submitted = [float(moment) for name, moment in calls if name == "sbatch"]
        if not submitted or (not stop and process.returncode != 0):
            raise RuntimeError(f"{shlex.join(words)[-200:]}: {output.read_text()[-2000:]}")
        counted = {name: sum(call[0] == name for call in calls) for name in sorted({call[0] for call in calls})}
        return Submission(submitted[0] - began, peak, counted, output.read_text())

    def _wait(self, process: subprocess.Popen[bytes], stop: bool) -> float:
        """Until it ends, or with `stop` until it has called sbatch and is ended. Returns its peak memory."""
        began = said = time.monotonic()
        peak = 0.0
        while True:
            if process.poll() is not None:
                return peak
            peak = high_water_mb(process.pid) or peak
            now = time.monotonic()
            if now - began > _PATIENCE or (stop and self.log.exists() and "sbatch" in self.log.read_text()):
                process.kill()
                process.wait()
                return 0.0
            if now - said > 4:
                said = now
                print(f"    {now - began:3.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.01)


@contextmanager
def login_node() -> Iterator[LoginNode]:
    """A login node in a folder of its own, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield LoginNode(Path(folder))


def _recorded() -> dict[str, str]:
    lines = (ROOT / "tests" / "unit" / "slurm" / "slurm_22_05.jsonl").read_text().splitlines()
    return {answer["label"]: answer["stdout"] for answer in map(json.loads, lines)}


def _files(folder: Path) -> None:
    (folder / "models").mkdir()
    write_nemo(folder / "models" / "tiny.nemo")
    data = folder / "data" / "sample"
    data.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").write_text("".join(row(number) for number in range(64)))


def high_water_mb(pid: int) -> float:
    """Largest resident memory of a process so far, MB; 0 once it has ended.

    Not ru_maxrss: that counts what the process was before exec, a copy of this one, which may hold all of torch.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
