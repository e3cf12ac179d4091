"""How a test talks to a Slurm cluster, whoever started it."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.slurm.daemon import ClusterFailed, wait_until

_SLURMS_OWN = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_")


def user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def environment(conf: Path) -> dict[str, str]:
    """This process's environment, less what Slurm or a user's profile put into it, for the cluster of `conf`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_SLURMS_OWN)}
    env["PATH"] = env.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    env["SLURM_CONF"] = str(conf)
    return env


class Existing:
    """A cluster that is there already and is only used: the one that SLURM_CONF or /etc/slurm names."""

    own = False
    """Whether it is ours to break: kill, power_off and limits of our choice are there only if it is."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.env = dict(os.environ if env is None else env)
        """For the `env` of any subprocess that is to use this cluster."""

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, input: str = "", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on this cluster, output as text. If it fails and `check`: AssertionError with its stderr."""
        done = subprocess.run(
            command, env=self.env, cwd=cwd, timeout=timeout, input=input, text=True, capture_output=True
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(command)}: code {done.returncode}: {done.stderr}{done.stdout}")
        return done

    @property
    def version(self) -> tuple[int, ...]:
        """Slurm's version: (24, 11, 5)."""
        return tuple(int(part) for part in self.run("sinfo", "--version").stdout.split()[-1].split(".")[:3])

    @property
    def names(self) -> list[str]:
        """The names of its nodes."""
        return sorted(set(self.run("sinfo", "-h", "-N", "-o", "%N").stdout.split()))

    def queue(self) -> list[str]:
        """This user's jobs, an array's elements apart: `id state reason`."""
        return self.run("squeue", "-h", "-r", f"--user={user_name()}", "-o", "%i %T %r").stdout.splitlines()

    def wait_idle(self, timeout: float = 120) -> None:
        """Waits until this user's queue is empty and no node is busy or down; else ClusterFailed says which is not."""
        seen: list[str] = []

        def idle() -> bool:
            nodes = self.run("sinfo", "-h", "-N", "-o", "%N %T").stdout.splitlines() if self.own else []
            seen[:] = [*self.queue(), *sorted({node for node in nodes if not node.endswith(" idle")})]
            return not seen

        if not wait_until(idle, timeout, poll=0.2):
            raise ClusterFailed(f"not idle after {timeout:.0f} s: {'; '.join(seen)}")

    def cancel_all(self, timeout: float = 60) -> None:
        """Cancels this user's jobs and waits until they are gone."""
        if self.queue():
            self.run("scancel", f"--user={user_name()}")
            if not wait_until(lambda: not self.queue(), timeout, poll=0.1):
                raise ClusterFailed(f"these do not end: {'; '.join(self.queue())}")
