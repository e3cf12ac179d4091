"""The checks of Slurm and containers for `python -m launcher doctor`."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator

from launcher import units
from launcher.check.cluster_limits import Site
from launcher.check.doctor import MISSING, OK, WARNING, Line
from launcher.slurm import client
from launcher.slurm.site import Association, Partition

OLDEST = (22, 5)
_PING_S = 3.0  # a controller that is up answers in milliseconds
_HELP_S = 3.0


def cluster(site: Site) -> Iterator[Line]:
    """Slurm's version, controllers, limits, partitions, and this user's accounts. Stops once Slurm stops answering.

    A single warning means that there is no cluster here.
    """
    if not client.available():
        yield Line("Slurm", WARNING, "no sbatch here: sweeps run on this machine (cluster=local)", _LOGIN)
        return
    try:
        controllers = client.ping(timeout=_PING_S)
        yield _version(client.version())
    except client.SlurmError as error:
        if "configuration source" in error.stderr:
            what = "its commands are here, but no cluster's slurm.conf: sweeps run on this machine (cluster=local)"
            yield Line("Slurm", WARNING, what, _LOGIN)
        else:
            yield Line("Slurm", MISSING, f"does not answer: {error}", _UP)
        return
    names = ", ".join(f"{host} {'up' if up else 'DOWN'}" for host, up in controllers.items())
    if not any(controllers.values()):
        yield Line("Slurm", MISSING, f"no controller answers ({names}): nothing can be submitted", _UP)
        return
    yield Line("Slurm", OK if all(controllers.values()) else WARNING, f"controllers: {names}")
    try:
        here = site.cluster
    except client.SlurmError as error:
        yield Line("Slurm", MISSING, str(error), _UP)
        return
    most = here.max_array_size
    what = f"cluster {here.name}; sweeps of over {most} trials become several arrays (MaxArraySize)"
    yield Line("Slurm", OK if most > 1 else MISSING, what, "" if most > 1 else "arrays are off: ask the administrators")
    yield _restarts(here.settings)
    for partition in here.partitions:
        yield _partition(partition)
    if here.default_partition is None:
        yield Line("partitions", WARNING, "none is the default", "always set cluster.partition")
    yield from _accounts(site)


_LOGIN = "to use a cluster, run this on its login node"
_UP = "ask the cluster's administrators; squeue and sbatch fail as well"


def _version(version: tuple[int, ...]) -> Line:
    text = ".".join(f"{part:02d}" if place == 1 else str(part) for place, part in enumerate(version))
    if version < OLDEST:
        return Line("Slurm", WARNING, f"version {text}: the launcher needs 22.05 or newer", "expect wrong answers")
    return Line("Slurm", OK, f"version {text}")


def _restarts(settings: dict[str, str]) -> Line:
    """How an interrupted trial continues on this cluster (slurm.conf(5): AuthInfo, PreemptMode, KillWait)."""
    match = re.search(r"cred_expire=(\d+)", settings.get("AuthInfo", ""))
    hold = int(match[1]) if match else 120
    what = f"Slurm holds a requeued trial for {hold + 1} s, unless `watch` or wait=true is running"
    mode = settings.get("PreemptMode", "OFF").upper()
    if "CANCEL" in mode:
        remedy = "ask for a GraceTime that is long enough for a step and a checkpoint"
        return Line(
            "restarts", WARNING, f"{what}; preempted jobs that do not end within their GraceTime are lost", remedy
        )
    return Line("restarts", OK, f"{what}; preemption: {mode.lower()}")


def _partition(partition: Partition) -> Line:
    usable, total = partition.nodes_with(usable=True), partition.nodes_with()
    kinds: dict[str, int] = {}
    for group in partition.groups:
        for kind, count in group.gpus.items():
            kinds[kind] = max(kinds.get(kind, 0), count)
    cards = ", ".join(f"{count} {kind or 'GPUs'}" for kind, count in kinds.items()) or "no GPUs"
    limit = "no time limit" if partition.max_time == math.inf else f"at most {units.time_limit(partition.max_time)}"
    name = f"{partition.name}{' (default)' if partition.default else ''}"
    what = f"{name}: {usable} of {total} nodes usable, {cards} a node, {limit}"
    if partition.state != "UP":
        return Line("partitions", WARNING, f"{what}; is {partition.state}: jobs wait until it is up", "use another one")
    if usable == 0:
        return Line("partitions", WARNING, f"{what}: jobs wait until nodes are back", "`sinfo -R` says why")
    return Line("partitions", OK, what)


def _accounts(site: Site) -> Iterator[Line]:
    try:
        rows = client.associations()  # Site takes an empty list for "not known"; here it is a finding
    except KeyError:
        yield Line("accounts", WARNING, site.accounts_unknown, "add the user to this machine's name service")
        return
    except client.SlurmError as error:
        remedy = "jobs still run; sacct does not list them until slurmdbd is back"
        yield Line("accounts", WARNING, f"the accounting does not answer: {error}", remedy)
        return
    if rows is None:
        yield Line("accounts", OK, "this cluster uses no accounts: cluster.account and cluster.qos need not be set")
        return
    mine = [row for row in rows if row.cluster.lower() == site.cluster.name.lower()]
    enforced = "associations" in site.cluster.settings.get("AccountingStorageEnforce", "")
    if not mine:
        state = MISSING if enforced else WARNING
        yield Line("accounts", state, "this cluster keeps accounts and you have none", "ask its administrators for one")
    for row in mine:
        yield Line("accounts", OK, _account(row))


def _account(row: Association) -> str:
    limits = [f"at most {units.time_limit(row.max_wall)} a job"] if row.max_wall < math.inf else []
    limits += [f"at most {row.max_submit:g} jobs at once"] if row.max_submit < math.inf else []
    limits += [f"{count:g} {name} a job" for name, count in row.max_per_job.items()]
    limits += [f"{count:g} {name} in all" for name, count in row.group.items()]
    where = f" in partition {row.partition}" if row.partition else ""
    qos = f", QoS {'/'.join(sorted(row.qos))}" if row.qos else ""
    return f"{row.account}{' (default)' if row.default else ''}{where}{qos}{': ' * bool(limits)}{', '.join(limits)}"


# -- containers --------------------------------------------------------------------------------------------------------


def containers() -> tuple[list[Line], bool]:
    """(lines, whether trials can run in a container of this cluster). A login node may lack what compute nodes have."""
    lines = []
    if pyxis := _pyxis():
        enroot = "" if shutil.which("enroot") else "; no enroot on this machine, which nodes need"
        lines.append(Line("containers", OK, f"srun knows pyxis' --container-image: cluster=slurm_pyxis{enroot}"))
    program = next((name for name in ("apptainer", "singularity") if shutil.which(name)), None)
    if program == "singularity":
        remedy = "alias it: the job calls apptainer"
        lines.append(Line("containers", WARNING, "singularity, but no apptainer, on this machine", remedy))
    elif program:
        lines.append(Line("containers", OK, f"{_output(program, '--version') or program}: cluster=slurm_apptainer"))
    if not lines:
        what = "neither pyxis nor apptainer on this machine: trials use this Python (cluster=slurm)"
        lines.append(Line("containers", OK, what))
    return lines, bool(pyxis or program)


def _pyxis() -> bool:
    return "--container-image" in _output("srun", "--help")


def _output(program: str, option: str) -> str:
    """The output of a program; "" if it is missing or fails."""
    if shutil.which(program) is None:
        return ""
    try:
        done = subprocess.run([program, option], capture_output=True, text=True, errors="replace", timeout=_HELP_S)
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else ""
