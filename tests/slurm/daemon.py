"""Processes of a throw-away Slurm cluster: started in the foreground, known by pid, ended for certain."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class ClusterFailed(Exception):
    """A daemon did not start, or did not become ready. Says which, and what it wrote last."""


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented; says so if there is none."""
    if not log.exists():
        return f"  (no {log})"
    last = log.read_text(errors="replace").splitlines()[-lines:] or [f"({log} is empty)"]
    return "\n".join(f"  {line}" for line in last)


def wait_until(true: Callable[[], bool], seconds: float, poll: float = 0.05) -> bool:
    """Whether `true()` became so in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(poll)
    return True


class Pid:
    """A process that is not our child, told from a later one with the same number by its start time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.started = self._start_time()
        if self.started is None:
            raise ProcessLookupError(f"process {number} is gone")

    def _start_time(self) -> str | None:
        """Field 22 of /proc/PID/stat, counted after the name (which may hold blanks); a zombie counts as gone."""
        try:
            fields = Path(f"/proc/{self.number}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]

    def alive(self) -> bool:
        return self.started is not None and self._start_time() == self.started

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, if this is still the same process."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the kill
                os.kill(self.number, number)


class Daemon:
    """One program that runs until it is stopped. It ends when this Python process ends, however that ends.

    (PR_SET_PDEATHSIG is bound to the thread that starts the daemon: start clusters from a thread that lives on.)
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name, self.command, self.log, self.env = name, list(command), log, dict(env)
        self.process: subprocess.Popen[str] | None = None
        self.pid: Pid | None = None

    prefix = ("setpriv", "--pdeathsig", "TERM")

    def start(self) -> None:
        """Starts it; returns before it is ready."""
        with self.log.with_suffix(".out").open("a") as out:
            self.process = self._popen([*self.prefix, *self.command], stdout=out, stderr=out)
        self.pid = Pid(self.process.pid)

    def _popen(self, command: Sequence[str], **streams: object) -> subprocess.Popen[str]:
        # a session of its own: Ctrl-C in the terminal is for us, who then end the daemons in their order
        options = {"env": self.env, "start_new_session": True, "text": True, "stdin": subprocess.DEVNULL, **streams}
        return subprocess.Popen(command, **options)  # type: ignore[call-overload, no-any-return]

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self, number: int) -> None:
        if self.alive() and self.pid is not None:
            self.pid.kill(number)

    def stop(self, patience: float = 5) -> None:
        """SIGTERM, and SIGKILL for one that does not listen. Returns when it is gone."""
        if self.process is None:
            return
        self.kill(signal.SIGTERM)
        self.kill(signal.SIGCONT)  # one that a test has stopped cannot hear SIGTERM
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGKILL)
            self.process.wait(patience)

    def ready(self, answers: Callable[[], bool], seconds: float) -> None:
        """Waits until it answers. Raises ClusterFailed when it dies or keeps silent."""
        if wait_until(lambda: not self.alive() or answers(), seconds) and self.alive():
            return
        what = "does not answer" if self.alive() else f"ended with code {self.process and self.process.returncode}"
        last = f"{tail(self.log)}\n{tail(self.log.with_suffix('.out'))}"
        raise ClusterFailed(f"{self.name} {what}; command: {' '.join(self.command)}; its last lines:\n{last}")


# Runs in the new namespaces while /proc still is the machine's, so /proc/self/stat gives the pid out here. With SIGCHLD
# ignored the kernel reaps whatever the node's processes leave behind.
_INIT = """
read -r pid rest </proc/self/stat; mount -t proc proc /proc
printf '%s' "$1" >/proc/sys/kernel/hostname; mount --bind "$2" /etc/hosts
echo "$pid"; exec env --ignore-signal=CHLD sleep infinity >/dev/null
"""
_ENTER = """
read -r pid rest </proc/self/stat; echo "$pid"
mount=$1 uts=$2 out=$3; shift 3
exec nsenter --mount="$mount" --uts="$uts" -- "$@" >>"$out" 2>&1
"""


class Node(Daemon):
    """A compute node: slurmd, and around it (with root) a host name, an /etc/hosts and a PID namespace of its own.

    Killing slurmd leaves its jobs running, as on a real node; `power_off` ends everything that runs on it.
    """

    prefix = ("setpriv", "--pdeathsig", "KILL")

    def __init__(self, name: str, log: Path, env: Mapping[str, str], hosts: Path | None) -> None:
        super().__init__(name, ["slurmd", "-D", "-N", name], log, env)
        self.hosts = hosts
        self.machine: subprocess.Popen[str] | None = None
        self.init: Pid | None = None

    @staticmethod
    def can_have_own_host() -> bool:
        """Whether namespaces may be made here: root, and not a container that forbids them."""
        trial = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
        return os.getuid() == 0 and subprocess.run(trial, capture_output=True).returncode == 0

    def power_on(self) -> None:
        """Makes the node's namespaces; slurmd is not started."""
        if self.hosts is None or (self.init is not None and self.init.alive()):
            return
        inside = ["sh", "-euc", _INIT, "sh", self.name, str(self.hosts)]
        unshare = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", *inside]
        self.machine = self._popen([*self.prefix, *unshare], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.init = self._pid_from(self.machine)

    def start(self) -> None:
        self.power_on()
        if self.init is None:
            super().start()
            return
        root = f"/proc/{self.init.number}/ns"
        inside = ["sh", "-euc", _ENTER, "sh", f"{root}/mnt", f"{root}/uts", str(self.log.with_suffix(".out"))]
        command = [*self.prefix, "nsenter", f"--pid={root}/pid", *inside, *self.command]
        self.process = self._popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self._pid_from(self.process)

    def _pid_from(self, process: subprocess.Popen[str]) -> Pid:
        """The number that one of the scripts above writes first."""
        assert process.stdout is not None and process.stderr is not None
        with process.stdout, process.stderr:
            first = process.stdout.readline()
            if not first:
                raise ClusterFailed(f"{self.name}: no namespace: {process.stderr.read().strip()}")
        return Pid(int(first))

    def power_off(self) -> None:
        """Ends slurmd and every process on the node at once, as a power cut would (needs own hosts)."""
        if self.init is None or self.machine is None:
            self.stop()
            return
        self.init.kill(signal.SIGKILL)
        self.machine.wait(10)
        if self.process is not None:
            self.process.wait(10)
        self.init = None


def jobs_processes(conf: Path) -> list[Pid]:
    """What this cluster's slurmd have started: slurmstepd, and all that has a job's environment, wherever it went."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            env = (folder / "environ").read_bytes().split(b"\0")
            step = (folder / "comm").read_text() == "slurmstepd\n"
            of_a_node = step or any(variable.startswith(b"SLURMD_NODENAME=") for variable in env)
            if of_a_node and b"SLURM_CONF=" + os.fsencode(conf) in env:
                found.append(Pid(int(folder.name)))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
            continue
    return found
