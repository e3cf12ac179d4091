"""The job that this process runs in: what Slurm knows about it, and how its script requeues or continues it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from launcher import whole_file
from launcher.slurm import client, profile

PATIENCE_S = 900.0
"""How long commands are repeated while the controller does not answer: it may be restarting."""
_AGAIN_S = 5.0
_CHAIN = "LAUNCHER_CHAIN"
_OF_THIS_START = ("TRIAL_ENDS_AT", "IN_CONTAINER_TRIAL_ENDS_AT")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class OwnJob:
    """The job of this batch script, from the script's environment."""

    element: str
    """`69_2`. Not Slurm's own job id of the element: the last element of an array has the whole array's id."""
    start_name: str
    restarts: int
    nodes: str
    """`node[1-2]`"""
    chain: str
    """The element that was submitted first; the chain's later jobs continue it."""
    cluster: str

    @classmethod
    def here(cls, env: Mapping[str, str] | None = None) -> OwnJob:
        env = os.environ if env is None else env
        element = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        restarts = env.get("SLURM_RESTART_COUNT", "0")
        nodes = env.get("SLURM_JOB_NODELIST", "")
        start_name = f"{env['SLURM_JOB_ID']}.{restarts}"
        return cls(
            element, start_name, int(restarts), nodes, env.get(_CHAIN) or element, env.get("SLURM_CLUSTER_NAME", "")
        )


@dataclass(frozen=True)
class JobRecord:
    """What the controller knows about a job."""

    state: str
    reason: str
    restarts: int
    preempted: bool
    """Whether the job is preempted and has only its grace time left."""
    excluded: str
    required: str
    fields: Mapping[str, str]

    @property
    def script_decides(self) -> bool:
        """Whether the batch script may still requeue or continue this job.

        In COMPLETING it may not, since the job was cancelled or Slurm itself requeues it; it may after a time limit.
        """
        return self.state == "RUNNING" or (self.state == "COMPLETING" and self.reason == "TimeLimit")


def query(element: str) -> JobRecord:
    """What the controller knows about an element. Raises SlurmError if the controller does not come back."""
    fields = job_fields(until_answered(lambda: client.run("scontrol", "show", "job", element).stdout))
    return JobRecord(
        state=fields.get("JobState", ""),
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        excluded=_names(fields.get("ExcNodeList", "")),
        required=_names(fields.get("ReqNodeList", "")),
        fields=fields,
    )


#: Fields whose text may contain spaces and `=`; each is the last field of its line.
_FREE_TEXT = ("JobName", "Command", "WorkDir", "Comment", "AdminComment", "SystemComment", "StdErr", "StdIn", "StdOut")
_FIELD = re.compile(
    rf"(?:^|\s)(?:(?P<free>{'|'.join(_FREE_TEXT)})=(?P<rest>.*)|(?P<key>[\w/:.\[\]-]+)=(?P<value>\S*))", re.DOTALL
)
_LINE = re.compile(r"\n {3}(?=\S+=)")


def job_fields(text: str) -> dict[str, str]:
    """The fields that `scontrol show job` prints for one job.

    scontrol quotes nothing, so the first value of a name counts: users' text is always at the end of a line, and all of
    it except the job's name comes after the fields that are read here.
    """
    fields: dict[str, str] = {}
    for line in _LINE.split(text.rstrip("\n")):
        for match in _FIELD.finditer(line):
            fields.setdefault(match["free"] or match["key"], match["rest"] if match["free"] else match["value"])
    return fields


def _names(text: str) -> str:
    return "" if text in ("(null)", "None") else text


def until_answered(question: Callable[[], _Answer]) -> _Answer:
    """Call `question`, again while the controller does not answer, and return its answer. Raises SlurmError."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return question()
        except client.SlurmError as error:
            if not error.unanswered or error.code is None or time.monotonic() > end:
                raise
            print(f"{error}; asking again in {_AGAIN_S:.0f} s", flush=True)
            time.sleep(_AGAIN_S)


def hostnames(nodes: str) -> list[str]:
    """[node1, node2] for `node[1-2]`."""
    return client.run("scontrol", "show", "hostnames", nodes).stdout.split() if nodes else []


def requeue(element: str) -> bool:
    """Put the job back into the queue, under the same id. False if the site forbids that. Raises SlurmError."""
    try:
        until_answered(lambda: client.requeue([element]))
    except client.SlurmError as error:
        if error.unanswered:
            raise
        print(f"cannot be requeued ({error.message})", flush=True)
        return False
    return True


def exclude_nodes(element: str, record: JobRecord, nodes: Sequence[str]) -> None:
    """Exclude `nodes` from a waiting job, in addition to those it already excludes. Raises SlurmError."""
    excluded = ",".join([*([record.excluded] if record.excluded else []), *nodes])
    client.run("scontrol", "update", f"JobId={element}", f"ExcNodeList={excluded}")


def room_without(partition: str, nodes: Sequence[str], needed: int) -> bool:
    """Whether a partition has `needed` usable nodes besides `nodes`. Raises SlurmError."""
    answer = until_answered(lambda: client.run("sinfo", "-h", "-N", "-p", partition, "-o", "%N %t"))
    rows = [line.split() for line in answer.stdout.splitlines()]
    dead = ("down", "drain", "drng", "fail", "inval", "unk", "maint", "futr")
    # a line `CLUSTER: name` comes first where SLURM_CLUSTERS is set
    usable = {row[0] for row in rows if len(row) > 1 and row[0] != "CLUSTER:" and not row[1].startswith(dead)}
    return len(usable - set(nodes)) >= needed


def final_state(element: str, start_name: str) -> str:
    """Slurm's state word for how a start ended, from the accounting; "" if the accounting does not know it."""
    number, _, place = start_name.partition(".")
    try:
        rows = [row for row in client.sacct([element], every_run=True) if str(row.job_id) == number]
    except client.SlurmError as error:
        print(f"how the start before ended is not known: {error}", flush=True)
        return ""
    rows.sort(key=lambda row: row.started or row.submitted or 0)
    return rows[int(place)].state.word if int(place) < len(rows) else ""


# -- a continuation ----------------------------------------------------------------------------------------------------


def continuation(
    sweep: Path, trials: Sequence[int], job: OwnJob, record: JobRecord, script: Sequence[str], away: Sequence[str]
) -> str:
    """Submit the script (with its arguments) again for `trials` of this job; the new job starts after this one.

    Returns the new element. The new job asks for what this job has, which may have been given on sbatch's command line.
    Jobs that depend on this job are changed to depend on the new one as well. Raises SlurmError.
    """
    task = job.element.partition("_")[2]
    options = [f"--array={task}", f"--dependency=afterany:{job.element}", "--export=ALL", *_request(record)]
    excluded = ",".join([*([record.excluded] if record.excluded else []), *away])
    if excluded:
        options.append(f"--exclude={excluded}")
    ignored = {*profile.overriding(Path(script[0]).read_text(encoding="utf-8")), *_OF_THIS_START}
    env = {name: value for name, value in client.environment().items() if name not in ignored} | {_CHAIN: job.chain}
    made = until_answered(
        lambda: client.sbatch(
            Path(script[0]), options, script_args=script[1:], env=env, cwd=Path(record.fields.get("WorkDir", "."))
        )
    )
    folder = sweep / "slurm"
    folder.mkdir(exist_ok=True)
    cluster = made.cluster or job.cluster
    for trial in trials:  # as sbatch writes it for a cluster of several
        name = f"{made.job_id};{cluster}" if cluster else f"{made.job_id}"
        whole_file.write_text(folder / f"trial{trial}-after-{job.element}.id", f"{name}\n")
    _bring_dependents(job.element.partition("_")[0], made.job_id)
    return f"{made.job_id}_{task}"


def _request(record: JobRecord) -> list[str]:
    env, fields = os.environ, record.fields
    options = {
        "job-name": env.get("SLURM_JOB_NAME"),
        "nodes": env.get("SLURM_JOB_NUM_NODES"),
        "ntasks-per-node": env.get("SLURM_NTASKS_PER_NODE"),
        "gpus-per-node": env.get("SLURM_GPUS_PER_NODE"),
        "cpus-per-task": env.get("SLURM_CPUS_PER_TASK"),
        "mem": env.get("SLURM_MEM_PER_NODE"),
        "partition": fields.get("Partition"),
        "account": fields.get("Account"),
        "qos": fields.get("QOS"),
        "time": fields.get("TimeLimit"),
    }
    return [f"--{name}={value}" for name, value in options.items() if value and value not in ("(null)", "UNLIMITED")]


def _bring_dependents(array: str, later: int) -> None:
    """Make this user's jobs that depend on the array `array` depend on `later` in the same way."""
    rows = client.run("squeue", "--job", "-h", "-t", "PENDING", "-o", "%i|%E").stdout.splitlines()
    for row in rows:
        job, _, waits = row.partition("|")
        kinds = re.findall(rf"(after\w+):{array}(?:_\S+?)?(?:\(\w+\))?(?=,|\?|$)", waits)
        kinds = [kind for kind in kinds if kind != "after"]
        if kinds and job.partition("_")[0] != str(later):
            kept = re.sub(r"\(\w+\)", "", waits)
            more = ",".join(f"{kind}:{later}" for kind in dict.fromkeys(kinds))
            client.run("scontrol", "update", f"JobId={job}", f"Dependency={kept},{more}")
