"""Faults, done for real to a trial that trains. Each function does one, and returns at once."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.victim import Sweeping

Fault = Callable[[Sweeping, int], None]


def _scancel(sweep: Sweeping, trial: int, *words: str, step: str = "") -> None:
    job = sweep.job(trial)
    sweep.hit(trial)
    sweep.desk.cluster.run("scancel", *words, job + step)


# The step is named: of a whole element, as long as others of its array wait, 22.05 says after each signal that it
# cannot be altered now, and scancel signals it again and again.
def usr2(sweep: Sweeping, trial: int = 0) -> None:
    """Slurm's warning, as `--signal=USR2@120` gives it: to the ranks, not to the batch script."""
    _scancel(sweep, trial, "--signal=USR2", step=".0")


def term(sweep: Sweeping, trial: int = 0) -> None:
    """SIGTERM to the ranks and nothing after it."""
    _scancel(sweep, trial, "--signal=TERM", step=".0")


def term_script(sweep: Sweeping, trial: int = 0) -> None:
    """SIGTERM to the batch script and what it has started on its node, but not to the ranks (22.05)."""
    _scancel(sweep, trial, "--full", "--signal=TERM")


def cancel(sweep: Sweeping, trial: int = 0) -> None:
    _scancel(sweep, trial)


def requeue(sweep: Sweeping, trial: int = 0) -> None:
    """By the site's operator: SIGTERM, and SIGKILL after KillWait (5 s here)."""
    job = sweep.job(trial)
    sweep.hit(trial)
    sweep.desk.cluster.run("scontrol", "requeue", job)


def signal_rank(number: int, rank: int) -> Fault:
    def send(sweep: Sweeping, trial: int = 0) -> None:
        (it,) = (each for each in sweep.ranks(trial) if each.rank == rank)
        sweep.hit(trial)
        it.pid.kill(number)

    return send


def sabotage(what: str, rank: int) -> Fault:
    """From inside a rank: `segfault`, `memory`."""

    def order(sweep: Sweeping, trial: int = 0) -> None:
        sweep.hit(trial)
        sweep.sabotage(what, rank, trial)

    return order


def node_of(sweep: Sweeping, trial: int, rank: int) -> str:
    return next(each.node for each in sweep.ranks(trial) if each.rank == rank)


def node_down(rank: int) -> Fault:
    """The operator sets the node of a rank down."""

    def down(sweep: Sweeping, trial: int = 0) -> None:
        node = node_of(sweep, trial, rank)
        sweep.hit(trial)
        sweep.desk.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")

    return down


def slurmd_killed(rank: int) -> Fault:
    """Slurm loses sight of the node of a rank, on which all goes on running."""

    def kill(sweep: Sweeping, trial: int = 0) -> None:
        node = node_of(sweep, trial, rank)
        sweep.hit(trial)
        sweep.desk.cluster.kill(node)

    return kill


def power_cut(rank: int) -> Fault:
    """The node of a rank goes dark with all that runs on it."""

    def off(sweep: Sweeping, trial: int = 0) -> None:
        node = node_of(sweep, trial, rank)
        sweep.hit(trial)
        sweep.desk.cluster.power_off(node)

    return off


def preempt(sweep: Sweeping, trial: int = 0, seconds: int = 5) -> None:
    """Somebody's job of a higher QoS takes the trial's nodes."""
    nodes = sorted({each.node for each in sweep.ranks(trial)})
    sweep.hit(trial)
    options = ["--qos=high", "--exclusive", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", "-o/dev/null"]
    sweep.desk.cluster.run("sbatch", *options, f"--wrap=sleep {seconds}")


def controller_restarted(sweep: Sweeping, trial: int = 0) -> None:
    """slurmctld crashes and is back after 5 s."""
    sweep.hit(trial)
    sweep.desk.cluster.kill("slurmctld")
    time.sleep(5)
    sweep.desk.cluster.restart("slurmctld")


def truncate_last_checkpoint(sweep: Sweeping, trial: int = 0) -> Path:
    """Cuts the largest file of the checkpoint written last in half, as a disk that was full would; returns it."""
    folder = sweep.folder / str(trial) / "results" / "checkpoints"
    files = [file for file in folder.rglob("*") if file.is_file() and "-last" in str(file.relative_to(folder))]
    newest = max(files, key=lambda file: _step(file))
    largest = max((file for file in files if _step(file) == _step(newest)), key=lambda file: file.stat().st_size)
    with largest.open("rb+") as stream:
        stream.truncate(largest.stat().st_size // 2)
    return largest


def _step(file: Path) -> int:
    return int(str(file).rpartition("step=")[2].partition("-")[0])


def mend(cluster: Cluster) -> None:
    """All daemons and all nodes are there again, and nothing waits."""
    for name in ("mariadbd", "slurmdbd", "slurmctld", *cluster.shape.names):
        if not cluster.daemons[name].alive():
            cluster.restart(name)
    cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    cluster.cancel_all()
    for name in cluster.shape.names:
        if cluster.node_state(name).rstrip("*") not in ("idle", "mixed", "allocated", "completing"):
            cluster.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
    cluster.wait_idle()


class SmallDisk:
    """A file system of its own for a sweep, that can be filled: a tmpfs, seen by nodes that are started after it."""

    def __init__(self, cluster: Cluster, folder: Path, megabytes: int = 64) -> None:
        self.cluster, self.folder, self.megabytes = cluster, folder, megabytes

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True)
        size = f"size={self.megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.folder)], check=True)
        self._restart_nodes()
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self._restart_nodes()  # else their namespaces keep it

    def _restart_nodes(self) -> None:
        for name in self.cluster.shape.names:
            self.cluster.power_off(name)
        for name in self.cluster.shape.names:
            self.cluster.restart(name)
        self.cluster.wait_idle()

    def fill(self, left_bytes: int) -> None:
        """Leave so much room."""
        room = shutil.disk_usage(self.folder).free - left_bytes
        with (self.folder / "ballast").open("wb") as stream:
            stream.write(b"x" * room)

    def free(self) -> None:
        (self.folder / "ballast").unlink()


def wait_for_partition(cluster: Cluster, state: str) -> None:
    cluster.run("scontrol", "update", "PartitionName=main", f"State={state}")
    assert wait_until(lambda: state in cluster.run("scontrol", "show", "partition", "main").stdout, 10)


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
