"""A user at a login node of the tests' cluster: a folder with a model and data, commands, and what became of them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.unit.conftest import row, write_nemo

ROOT = Path(__file__).resolve().parents[2]
MAIN = str(ROOT / "launcher" / "main.py")
BETA = "model.dpo.ref_policy_kl_penalty"
#: Python in the job: every rank is the stand-in, whatever module it is told to run.
STANDIN = shlex.join([sys.executable, "-IS", str(Path(__file__).with_name("standin.py"))])
#: A trial of one rank, on a CPU node, for five minutes at most.
SMALL = ("model=tiny", "data=sample", "cluster.gpus_per_node=null", "cluster.time=5", "cluster.mem_gb=0.5")


@dataclass
class Desk:
    """Where launcher/main.py is run from. `env` goes on top of the cluster's own variables."""

    cluster: Cluster
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def set_up(self) -> None:
        """The files a trial names: a model that passes for one, 16, 8 and 8 pairs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "models").mkdir()
        write_nemo(self.folder / "models" / "tiny.nemo")
        data = self.folder / "data" / "sample"
        data.mkdir(parents=True)
        for split, rows in (("train", 16), ("validation", 8), ("test", 8)):
            (data / f"{split}.jsonl").write_text("".join(row(number) for number in range(rows)))

    @property
    def sweep_folder(self) -> Path:
        """The folder that `start` names; one sweep a desk."""
        return self.folder / "sweep"

    def start(self, *words: str, standin: bool = True, group: str = "slurm") -> subprocess.Popen[str]:
        """launcher/main.py with these words, and with those that make a small trial of a stand-in."""
        fast = (f"cluster.python={quoted(STANDIN)}",) if standin else ()
        given = {word.lstrip("+").partition("=")[0] for word in words}
        defaults = (f"cluster={group}", f"hydra.sweep.dir={quoted(str(self.sweep_folder))}", *SMALL, *fast)
        rest = [word for word in defaults if word.partition("=")[0] not in given]
        return self._start([*words, *rest])

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, MAIN, *words],
            cwd=self.folder,
            env={**self.cluster.env, **self.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def main(
        self, *words: str, standin: bool = True, group: str = "slurm", timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """The same, run to its end."""
        return _ended(self.start(*words, standin=standin, group=group), timeout)

    def bare(self, *words: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """launcher/main.py with these words and no others."""
        return _ended(self._start(list(words)), timeout)

    def sweep(self) -> Sweep:
        return Sweep.load(self.sweep_folder)

    def arrays(self) -> list[str]:
        """The ids of the arrays that the sweep's folder knows, as Slurm has them."""
        return [str(job.id) for job in self.sweep().submitted()]

    def all_arrays(self) -> set[str]:
        """The arrays that Slurm has or had of this user, whoever knows them."""
        return set(self.cluster.run("squeue", "-h", "-r", "--states=all", "-o", "%F").stdout.split())

    def wait_ended(self, timeout: float = 120) -> None:
        assert wait_until(lambda: not self.cluster.queue(), timeout, poll=0.2), self.cluster.queue()

    def accounted(self, array: str) -> dict[int, tuple[str, str]]:
        """(state, exit code) of each element of an array, by its index, once sacct has all of them as ended."""
        elements = next(len(job.trials) for job in self.sweep().submitted() if job.id == array)
        rows: dict[int, tuple[str, str]] = {}

        def known() -> bool:
            said = self.cluster.run("sacct", "-X", "-n", "-P", "-j", array, "-o", "JobID,State,ExitCode").stdout
            found = re.findall(r"^\d+_(\d+)\|([^|\n]+)\|(.*)$", said, re.MULTILINE)
            rows.clear()
            rows.update({int(index): (state, code) for index, state, code in found})
            busy = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
            return len(rows) == elements and not any(state in busy for state, _ in rows.values())

        assert wait_until(known, 20, poll=0.3), rows
        return rows

    def ranks(self, trial: int) -> list[dict[str, Any]]:
        """What the stand-ins of a trial have noted, by rank."""
        files = sorted((self.sweep_folder / str(trial)).glob("rank*.json"))
        return [json.loads(file.read_text()) for file in files]

    def wrap(self, name: str, text: str) -> Path:
        """A shell script first on the PATH; in its text REAL stands for the command it wraps. Returns its record.

        `record "$@"` in the text notes the arguments it was called with; `calls` reads them.
        """
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        record = folder / f"{name}.calls"
        real = shlex.quote(shutil.which(name, path=self.cluster.env["PATH"]) or "/bin/false")
        # in one write, since several ranks may call at once
        note = f'printf "%s\\0" "$@" $\'\\036\' >>{shlex.quote(str(record))}'
        script = folder / name
        script.write_text(f"#!/bin/bash\nrecord() {{ {note}; }}\n" + text.replace("REAL", real))
        script.chmod(0o755)
        self.env["PATH"] = f"{folder}:{self.cluster.env['PATH']}"
        return record

    def calls(self, record: Path) -> list[list[str]]:
        """The arguments of every call that a wrapper recorded."""
        text = record.read_text() if record.exists() else ""
        return [call.split("\0")[:-1] for call in text.split("\x1e\0")[:-1]]


def quoted(value: str) -> str:
    """A text as a value of a Hydra override. Only quotes, and backslashes before one, need a backslash."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)\Z", r"\1\1", escaped) + "'"


def _ended(process: subprocess.Popen[str], timeout: float) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
