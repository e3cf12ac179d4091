"""Slurm's commands as functions: queries return the rows of launcher.slurm.rows and launcher.slurm.site.

A query is one command, whatever the number of jobs: `squeue([array])` and `sacct([array])` cover a whole sweep.
launcher.slurm.run runs the commands. Written for Slurm 22.05 and newer.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import whole_file
from launcher.slurm import profile, rows, site
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.slurm.run import (
    PATIENCE,
    Answer,
    SlurmMissing,
    SlurmTimeout,
    ask,
    count,
    hooks,
    reading,
)
from launcher.slurm.run import SlurmError as SlurmError
from launcher.slurm.run import environment as environment
from launcher.slurm.run import run as run
from launcher.slurm.site import Association, SlurmCluster

# -- is there a Slurm? -------------------------------------------------------------------------------------------------


def available() -> bool:
    """Whether Slurm's commands are installed on this machine. Runs none of them."""
    return shutil.which("sbatch") is not None


def configured() -> bool:
    """Whether Slurm's commands find a cluster's configuration here, whether or not its controller answers.

    A laptop may have the commands and no cluster. Runs a command only if the configuration is in none of the
    usual places and may come by DNS (slurm.conf(5), "configless").
    """
    usual = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf/slurm.conf")
    if "SLURM_CONF" in os.environ or any(Path(name).exists() for name in usual):
        return True
    try:
        ping()
    except SlurmError as error:
        return "configuration source" not in error.stderr
    return True


def version() -> tuple[int, ...]:
    """The version of Slurm's commands: (22, 5, 8). The controller's may be one release newer. Raises SlurmError."""
    answer = ask("sbatch", "--version")
    match = re.search(r"\d+(?:\.\d+)+", answer.stdout)
    if not match:
        raise SlurmError(answer, f"no version in {answer.stdout.strip()!r}")
    return tuple(int(part) for part in match[0].split("."))


def ping(timeout: float = 30) -> dict[str, bool]:
    """The controllers and whether each answers: {"head1": True, "head2": False}."""
    try:
        text = ask("scontrol", "ping", timeout=timeout).stdout
    except SlurmError as error:  # exit code 1 if no controller is up; the output still lists them
        text = error.answer.stdout
        if "Slurmctld(" not in text:
            raise
    return {host: word == "UP" for host, word in re.findall(r"Slurmctld\(\w+\) at (\S+) is (\w+)", text)}


# -- jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """The job that sbatch submitted."""

    job_id: int
    """For an array: the array's id."""
    cluster: str
    """Empty unless a cluster other than this machine's took it (SBATCH_CLUSTERS, --clusters)."""
    remarks: str
    """Remarks of the site's submit plugin; usually empty."""


def sbatch(
    script: str | os.PathLike[str] | None = None,
    args: Sequence[str] = (),
    *,
    text: str = "",
    script_args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 2 * PATIENCE,
) -> Submitted:
    """Submit a script: a file, or its text. Raises SlurmError with Slurm's reason; SlurmTimeout if sbatch does not end.

    args   options such as `--partition=main`; they win over the script's #SBATCH lines
    env    the environment of sbatch and of the job (default: `environment()`)
    """
    if (script is None) == (not text):
        raise ValueError("either a script or its text")
    words = [] if script is None else [os.fspath(script), *script_args]
    answer = run("sbatch", "--parsable", *args, *words, timeout=timeout, stdin=text, env=env, cwd=cwd)
    job_and_cluster = _job_id(answer.stdout)
    if job_and_cluster is None:
        raise SlurmError(answer, f"no job id in {answer.stdout!r}")
    return Submitted(*job_and_cluster, answer.stderr.strip())


def submit(script: Path, receipt: Path, timeout: float = 2 * PATIENCE) -> int:
    """Submit a script. sbatch itself writes the job's id, as its output, into the file `receipt`.

    So the id is on disk even if this process is killed while sbatch runs. sbatch's errors go into a file too (.err,
    beside the receipt): writing a remark into a pipe without a reader would end sbatch before it writes the id.
    SBATCH_ variables of a profile do not change what the script's #SBATCH lines say. Raises SlurmError, SlurmTimeout.
    """
    command = ("sbatch", "--parsable", os.fspath(script))
    count["sbatch"] += 1
    began = time.monotonic()
    complaints = receipt.with_suffix(".err")
    ignored = profile.overriding(script.read_text(encoding="utf-8"))
    env = {name: value for name, value in environment().items() if name not in ignored}
    with receipt.open("wb") as output, complaints.open("wb") as errors:
        try:
            # In a session of its own, so that Ctrl-C in the terminal does not end sbatch before it writes the id.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=env, start_new_session=True
            )
        except FileNotFoundError:
            missing = Answer(command, None, "", "", 0.0)
            raise SlurmMissing(missing, "not found on the PATH: is this a machine of a Slurm cluster?") from None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise SlurmTimeout(Answer(command, None, "", "", timeout), f"no answer in {timeout:.0f} s") from None
        except KeyboardInterrupt:
            process.wait(timeout)  # the controller may have the job already: its id has to be written down
            raise
    stderr = complaints.read_text(encoding="utf-8", errors="replace")
    if not stderr:
        complaints.unlink()
    stdout = receipt.read_text(encoding="utf-8", errors="replace")
    answer = Answer(command, code, stdout, stderr, time.monotonic() - began)
    for hook in hooks:
        hook(answer)
    if code:
        raise SlurmError(answer)
    written = read_receipt(receipt)
    if written is None:
        raise SlurmError(answer, f"no job id in {answer.stdout!r}")
    return written[0]


def read_receipt(receipt: Path) -> tuple[int, str] | None:
    """(job id, cluster) as sbatch wrote them, cluster "" if it named none. None if it has written no id (yet)."""
    written = whole_file.read(receipt)
    return None if written is None else _job_id(written.decode(errors="replace"))


def _job_id(text: str) -> tuple[int, str] | None:
    """(id, cluster) from what `sbatch --parsable` wrote, perhaps below the output of a submit plugin."""
    for line in reversed(text.splitlines()):
        if match := re.fullmatch(r"(\d+)(?:;(\S+))?", line.strip()):
            return int(match[1]), match[2] or ""
    return None


def squeue(
    jobs: Iterable[int | str] | None = None, *, name: str | None = None, ended: bool = False, user: str | None = None
) -> list[QueueRow]:
    """The queue's rows for some jobs or arrays (or all with a name; or all of a user, by default this one).

    Every element of an array is a row, also the waiting ones. ended: include ended jobs while the queue still knows
    them (MinJobAge, 5 minutes); ask sacct for older ones. Raises SlurmError.
    """
    chosen = _chosen(jobs, name)
    if chosen is None:
        return []
    whose = [f"--user={user}"] if user else [] if jobs is not None else ["--me"]
    states = ["--states=all"] if ended else []
    options = ["-r", "-h", *chosen, *whose, *states, "-O", rows.QUEUE_FORMAT]
    # squeue fails if the only id is forgotten, but not if one of several is
    answer = ask("squeue", *options, tolerate=_GONE)
    with reading(answer):
        return rows.queue_rows(answer.stdout)


def sacct(jobs: Iterable[int | str], *, name: str | None = None, every_run: bool = False) -> list[AccountRow]:
    """The accounting's rows for some jobs or arrays, with `name` only those of that name.

    every_run: return a row for each run of a requeued job, not only for the latest run.

    In the first seconds the accounting (22.05) may show the last element of an array as a plain job with the array's
    id, FAILED if that element failed. The accounting lags by 1 s, by 5 s on a busy machine. Jobs that were held from
    the start are found only by id. An element that was cancelled by itself before it started has no row,
    here or in squeue (22.05). Raises SlurmError.
    """
    chosen = _chosen(jobs, name)
    if chosen is None:
        return []
    runs = ["--duplicates"] if every_run else []
    answer = ask("sacct", "-X", "-n", "-P", *chosen, *runs, "-o", ",".join(rows.ACCOUNT_FIELDS))
    with reading(answer):
        return rows.account_rows(answer.stdout)


def scancel(jobs: Iterable[int | str], *, cluster: str = "") -> None:
    """Cancel jobs, arrays (`69`), elements (`69_2`, `69_[2-5]`). Ended jobs are ignored. Raises SlurmError.

    `cluster`: the one whose ids these are, if sbatch named one.
    """
    if ids := [str(job) for job in jobs]:
        run("scancel", *_on(cluster), *ids, tolerate=_GONE)


def scancel_name(name: str, *, user: str, clusters: str = "") -> None:
    """Cancel a user's jobs of this name, such as those whose ids no sbatch has told. Raises SlurmError.

    `clusters`: the clusters to look on, if sbatch was to choose among some.
    """
    if not can_look_for(name):
        raise ValueError(f"name={name!r}")
    run("scancel", *_on(clusters), f"--name={name}", f"--user={user}", tolerate=_GONE)


def _on(clusters: str) -> list[str]:
    return [f"--clusters={clusters}"] if clusters else []


def requeue(jobs: Iterable[int | str]) -> None:
    """End running jobs and put them back into the queue; also ended jobs that the queue still knows.

    Slurm holds them for cred_expire (2 minutes by default); `start_now` avoids that. Raises SlurmError.
    """
    if ids := ",".join(str(job) for job in jobs):
        run("scontrol", "requeue", ids)


def start_now(jobs: Iterable[int | str]) -> None:
    """Let waiting jobs start as soon as there is room, and not at the start time they have. Raises SlurmError.

    Call it at least 2 seconds after a requeue: if slurmd ends and starts a job in the same second, it rejects the
    credential as revoked, and the job is FAILED (22.05).
    """
    if ids := ",".join(str(job) for job in jobs):
        run("scontrol", "update", f"JobId={ids}", "StartTime=now", tolerate=_NOT_WAITING)


_NOT_WAITING = "no longer pending|Invalid job id|Access/permission denied"  # it runs already, or is another user's
_GONE = "Invalid job id|already completing or completed"


def can_look_for(name: str) -> bool:
    """Whether squeue and sacct can select jobs by this name.

    A comma starts the next name. sacct 22.05 finds nothing and exits with 0 if there are quotes or brackets.
    """
    return bool(name) and not set(name) & set(",'\"[]")


def _chosen(jobs: Iterable[int | str] | None, name: str | None) -> list[str] | None:
    """The options that select jobs; None if the selection is empty, which must not become all jobs."""
    if name is not None and not can_look_for(name):
        raise ValueError(f"name={name!r}: Slurm cannot look for a name with a comma, quotes or brackets in it")
    ids = None if jobs is None else [str(job) for job in jobs]
    if ids == []:
        return None
    return [*(["-j", ",".join(ids)] if ids else []), *([f"--name={name}"] if name is not None else [])]


# -- the cluster -------------------------------------------------------------------------------------------------------


def cluster_name() -> str:
    """The name of the cluster that these commands ask. A process asks for it once. Raises SlurmError."""
    return _cluster_name(os.environ.get("SLURM_CONF"), os.environ.get("SLURM_CLUSTERS"))


@functools.cache
def _cluster_name(*_chosen_by: str | None) -> str:
    answer = ask("scontrol", "show", "config")
    with reading(answer):
        return site.settings(answer.stdout)["ClusterName"]


def cluster() -> SlurmCluster:
    """Configuration and partitions, also hidden ones, read with two commands. Raises SlurmError."""
    # scontrol reads requests from standard input, so one command answers both
    clusters = ask("scontrol", "--all", "--oneliner", stdin="show config\nshow partition\n")
    nodes = ask("sinfo", "--all", "--exact", "-h", "-o", site.NODE_FORMAT)
    # scontrol prints its prompt even without a terminal: with libreadline on its own line, else before the answer
    text = re.sub(r"^(?:scontrol: )+", "", clusters.stdout, flags=re.MULTILINE)
    with reading(nodes):
        groups = site.node_groups(nodes.stdout)
    with reading(clusters):
        match = SlurmCluster(site.settings(text), site.partitions(text, groups))
        _ = match.name, match.max_array_size
        return match


def associations(user: str | None = None) -> list[Association] | None:
    """What a user (by default this one) may do under each account. None: this cluster keeps no accounts.

    []: the cluster shows no account of this user; if it enforces them and this is so, sbatch refuses all jobs. Raises
    SlurmError, and KeyError where this user has no name (in a container without the site's passwd).
    """
    name = user or pwd.getpwuid(os.getuid()).pw_name
    fields = f"format={','.join(site.ASSOCIATION_FIELDS)}"
    try:
        answer = ask("sacctmgr", "-n", "-P", "show", "user", name, "withassoc", fields)
    except SlurmError as error:
        if "not running a supported accounting_storage" in error.stderr + error.answer.stdout:
            return None
        raise
    with reading(answer):
        return site.associations(answer.stdout)
