"""A real Slurm cluster on this machine, for tests: munged, MariaDB, slurmdbd, slurmctld and a slurmd for each node.

    with Cluster(nodes=2) as cluster:
        cluster.run("srun", "-N2", "hostname")

    python -m tests.slurm.cluster --nodes 4                   # keeps it up until Ctrl-C
    python -m tests.slurm.cluster --nodes 2 -- sinfo          # runs one command on it, and ends with its exit code

Needs the packages of install.sh; neither systemd nor cgroups. Everything lies in one folder and on one range of ports,
so several clusters may be up at once; nothing in /etc is read or written. As root each node has a host name, an
/etc/hosts and a PID namespace of its own. Not root: it works, but every rank sees this machine's name.

Accounts research (the default) and vip (not this user's); QoS normal and high (preempts normal). Partitions: main,
short (5 minutes), dead (DOWN), wide (account vip only).

If this process is killed (-9, too), the kernel ends the daemons, and with own host names all jobs; the folder stays.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.roots.build import CannotBuild
from tests.slurm import libmariadb
from tests.slurm.conf import Places, Shape, cgroup_conf, gres_conf, hosts, slurm_conf, slurmdbd_conf
from tests.slurm.daemon import ClusterFailed, Daemon, Node, jobs_processes
from tests.slurm.existing import Existing, environment, user_name

_PORTS = range(16384, 32768, 256)  # below the ports the kernel hands out by itself
_LONGEST_FOLDER = 60  # bytes; a Unix socket's path has at most 107, and slurmstepd's lies deepest


class Cluster(Existing):
    """A cluster of our own. Keyword arguments are those of `conf.Shape`.

    folder    where it lives: empty or not there yet, at most 60 bytes long, removed at the end unless `keep`
    progress  called with a line for each step of the start
    """

    own = True

    def __init__(
        self,
        *,
        folder: Path | None = None,
        keep: bool = False,
        progress: Callable[[str], None] = lambda line: None,
        **shape: object,
    ) -> None:
        super().__init__({})
        self.shape = Shape(**shape)  # type: ignore[arg-type]
        if not 1 <= self.shape.nodes <= 250:
            raise ValueError(f"nodes={self.shape.nodes}: 1 to 250")
        self.folder, self.keep, self.progress = folder, keep, progress
        self.daemons: dict[str, Daemon] = {}
        """By name: munged, mariadbd, slurmdbd, slurmctld, node1, node2, ... (a node's is its slurmd)."""
        self.own_hosts = Node.can_have_own_host()
        self._made: Path | None = None
        self._guard: socket.socket | None = None

    def __enter__(self) -> Cluster:
        return self.up()

    def __exit__(self, *error: object) -> None:
        self.down()

    # -- start ---------------------------------------------------------------------------------------------------------
    def up(self) -> Cluster:
        """Starts it; returns when all nodes are idle. If a part fails, or Ctrl-C comes, all of it is ended again."""
        began = time.monotonic()
        try:
            self.places = self._lay_out()
            self.env = environment(self.places.conf)
            _write(self.places, "cgroup.conf", cgroup_conf(self.version))
            for step in (self._start_munge_and_sql, self._start_slurmdbd, self._start_slurmctld, self._start_nodes):
                step()
                self.progress(f"{time.monotonic() - began:5.1f} s  {', '.join(self.daemons)}")
        except BaseException:
            self.down()
            raise
        return self

    def _lay_out(self) -> Places:
        """Folder, ports and configuration files."""
        folder = Path(tempfile.mkdtemp(prefix="slurm-")) if self.folder is None else self.folder.absolute()
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            raise ValueError(f"folder={folder}: longer than {_LONGEST_FOLDER} bytes, and Unix sockets lie in it")
        if any(letter.isspace() for letter in str(folder)):  # mariadb-install-db and slurmd (gres.conf) cut it there
            raise ValueError(f"folder={folder}: no blanks, please; MariaDB and Slurm's gres.conf do not take them")
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"folder={folder}: not empty")
        self._made = folder
        self._guard = _hold_ports()
        host = socket.gethostname().split(".")[0]
        places = Places(folder, host, user_name(), self._guard.getsockname()[1], self.own_hosts)
        spools = [f"spool/{name}" for name in self.shape.names]
        for name in ("etc", "log", "state", "dev", "sql", *spools):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        (folder / "sql").chmod(0o700)
        for number in range(self.shape.gpus):
            (folder / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        _write(places, "slurm.conf", slurm_conf(self.shape, places))
        _write(places, "gres.conf", gres_conf(self.shape, places))
        _write(places, "hosts", hosts(self.shape, places))
        _write(places, "slurmdbd.conf", slurmdbd_conf(places), mode=0o600)
        _write(places, "munge.key", os.urandom(512).hex(), mode=0o600)
        return places

    def _daemon(self, name: str, *command: str, **env: str) -> Daemon:
        """A daemon that `restart` and `down` know of, started."""
        daemon = self.daemons[name] = Daemon(name, command, self.places.log(name), {**self.env, **env})
        daemon.start()
        return daemon

    def _answers(self, *command: str) -> bool:
        try:
            return self.run(*command, check=False, timeout=5).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def _start_munge_and_sql(self) -> None:
        folder, sql, munge = self.places.folder, str(self.places.sql_socket), str(self.places.munge_socket)
        files = [f"--{kind}-file={folder / f'munged.{kind}'}" for kind in ("pid", "seed")]
        files += [f"--key-file={folder / 'etc' / 'munge.key'}", f"--log-file={self.places.log('munged')}"]
        munged = self._daemon("munged", "munged", "--foreground", "--force", f"--socket={munge}", *files)
        base = ["--no-defaults", f"--user={self.places.user}", f"--datadir={folder / 'sql' / 'data'}"]
        base.append(f"--tmpdir={folder / 'sql'}")  # a server that starts clears its tmpdir of others' tables
        # nothing of it has to survive a power cut, and little is kept in it
        base += ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=4M"]
        flags = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.run("mariadb-install-db", *base, *flags, timeout=300)
        flags = ["--skip-networking", "--performance-schema=OFF", "--innodb-lock-wait-timeout=900"]
        mariadbd = self._daemon(
            "mariadbd", "mariadbd", *base, *flags, f"--socket={sql}", "--innodb-buffer-pool-size=32M"
        )
        munged.ready(lambda: self._answers("munge", "-n", "-S", munge), 20)
        mariadbd.ready(lambda: self._answers("mariadb-admin", "--no-defaults", "-uroot", f"--socket={sql}", "ping"), 60)

    def _start_slurmdbd(self) -> None:
        self._start_accounting()
        user = self.places.user
        # slurmctld enforces associations: they have to be there before it starts
        self.sacctmgr("add", "cluster", "lab")
        self.sacctmgr("add", "account", "research,vip", "Description=test", "Organization=test")
        self.sacctmgr("add", "qos", "high", "Priority=1000", "Preempt=normal", "PreemptMode=requeue", "GraceTime=5")
        self.sacctmgr("modify", "qos", "normal", "set", "GraceTime=5")
        self.sacctmgr("add", "user", user, "Account=research", "QOS=normal,high", "DefaultAccount=research")
        if user == "root":  # every cluster comes with a root of its own account
            self.sacctmgr("modify", "user", user, "set", "DefaultAccount=research")

    def _start_accounting(self) -> None:
        sql = {"MYSQL_UNIX_PORT": str(self.places.sql_socket)}

        def ready() -> None:
            slurmdbd = self._daemon("slurmdbd", "slurmdbd", "-D", **sql)
            slurmdbd.ready(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), 60)

        try:
            ready()
        except ClusterFailed:
            if libmariadb.SYMPTOM not in self.places.log("slurmdbd").read_text(errors="replace"):
                raise
            try:
                sql["LD_LIBRARY_PATH"] = str(libmariadb.debian12())
            except CannotBuild as error:
                raise ClusterFailed(f"slurmdbd does not work with this machine's libmariadb, and {error}") from error
            ready()

    def _start_slurmctld(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-D", "-i").ready(lambda: self._answers("scontrol", "ping"), 60)

    def _start_nodes(self) -> None:
        own_hosts = self.places.folder / "etc" / "hosts" if self.own_hosts else None
        nodes = [Node(name, self.places.log(name), self.env, own_hosts) for name in self.shape.names]
        for node in nodes:
            self.daemons[node.name] = node
            node.start()
        for node in nodes:
            node.ready(lambda name=node.name: self.node_state(name) == "idle", 90)  # type: ignore[misc]

    # -- use -----------------------------------------------------------------------------------------------------------
    def sacctmgr(self, *command: str) -> None:
        """Changes accounts, users or QoS, asking nothing."""
        self.run("sacctmgr", "--immediate", "--quiet", *command)

    def node_state(self, name: str) -> str:
        """idle, mixed, allocated, down*, ... as sinfo says."""
        return (self.run("sinfo", "-h", "-N", "-n", name, "-p", "main", "-o", "%T").stdout.split() or [""])[0]

    def pids(self) -> dict[str, int]:
        """The processes of all daemons that live."""
        return {name: daemon.pid.number for name, daemon in self.daemons.items() if daemon.pid and daemon.pid.alive()}

    # -- faults --------------------------------------------------------------------------------------------------------
    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one daemon; returns when it is gone, if the signal is one that ends it.

        slurmctld writes its state down a few seconds late: with SIGKILL it forgets what it was told last, as a crashed
        one does; with SIGTERM it forgets nothing.
        """
        daemon = self.daemons[name]
        daemon.kill(number)
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) and daemon.process is not None:
            daemon.process.wait(30)

    def restart(self, name: str) -> None:
        """Starts one daemon again (ends it first if it lives); returns when it answers."""
        daemon = self.daemons[name]
        daemon.stop()
        daemon.start()
        answers = {
            "munged": lambda: self._answers("munge", "-n", "-S", str(self.places.munge_socket)),
            "mariadbd": self.places.sql_socket.exists,
            "slurmdbd": lambda: self._answers("sacctmgr", "-n", "show", "cluster"),
            "slurmctld": lambda: self._answers("scontrol", "ping"),
        }
        daemon.ready(answers.get(name, lambda: "*" not in self.node_state(name)), 60)

    def power_off(self, name: str) -> None:
        """Ends a node at once with all that runs on it (without own host names: only its slurmd). See `restart`."""
        node = self.daemons[name]
        assert isinstance(node, Node), f"{name} is no node"
        node.power_off()

    # -- end -----------------------------------------------------------------------------------------------------------
    def down(self) -> None:
        """Ends all processes of this cluster and its jobs; removes its folder. May be called twice. Ctrl-C waits."""
        with _uninterrupted():
            if not self.own_hosts and "slurmctld" in self.pids():
                with contextlib.suppress(subprocess.TimeoutExpired):  # its daemons may be what has failed
                    self.run("scancel", f"--user={self.places.user}", check=False, timeout=10)
            for daemon in reversed(self.daemons.values()):
                if isinstance(daemon, Node):
                    daemon.power_off()
                daemon.stop()
            self.daemons.clear()
            if self._made is not None:
                for pid in jobs_processes(self._made / "etc" / "slurm.conf"):
                    pid.kill()  # what a job left behind, where nodes have no namespace to end with
                if not self.keep:
                    shutil.rmtree(self._made)
                self._made = None
            if self._guard is not None:
                self._guard.close()
                self._guard = None


def _write(places: Places, name: str, text: str, mode: int = 0o644) -> None:
    path = places.folder / "etc" / name
    path.touch(mode)
    path.chmod(mode)  # munged and slurmdbd refuse to read a secret that others may read
    path.write_text(text)


def _hold_ports() -> socket.socket:
    """Binds the first port of a free range of 256, which keeps other clusters off it for as long as it stays open."""
    for first in _PORTS:
        guard = socket.socket()
        try:
            guard.bind(("127.0.0.1", first))
            for port in range(first + 1, first + 4):
                with socket.socket() as other:
                    other.bind(("127.0.0.1", port))
        except OSError:
            guard.close()
            continue
        return guard
    raise ClusterFailed(f"no free ports between {_PORTS.start} and {_PORTS.stop}")


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C from leaving things half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(arguments: list[str] | None = None) -> int:
    """Keeps a cluster up until Ctrl-C, or runs one command on it and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=main.__doc__)
    for name, default in (("nodes", 3), ("cpus", 16), ("mem", 64000), ("gpus", 8), ("max-array-size", 1001)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--folder", type=Path, help="where it lives (default: a new one under /tmp)")
    parser.add_argument("--keep", action="store_true", help="leave the folder with its logs")
    parser.add_argument("command", nargs="*", help="a command to run on it, after --")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts `... &` with SIGINT ignored
    try:
        with Cluster(progress=lambda line: print(line, file=sys.stderr, flush=True), **options) as cluster:
            if command:
                return subprocess.run(command, env=cluster.env).returncode
            print(f"export SLURM_CONF={shlex.quote(cluster.env['SLURM_CONF'])}", flush=True)
            print("Ctrl-C ends it", file=sys.stderr)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 130
    except (ClusterFailed, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
