"""The job that this process runs in, or ran in: what Slurm says of it, and what its own script may have done to it."""

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
"""How long a controller that does not answer is asked again: it may be starting anew."""
_AGAIN_S = 5.0
_CHAIN = "LAUNCHER_CHAIN"
_OF_THIS_START = ("TRIAL_ENDS_AT", "IN_CONTAINER_TRIAL_ENDS_AT")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Me:
    """What the environment of a batch script says."""

    element: str
    """`69_2`. Not Slurm's own number of the element: that of an array's last one is the array's, which names all."""
    attempt: str
    restarts: int
    nodes: str
    """`node[1-2]`"""
    chain: str
    """The element that was submitted; later ones of the chain are continuations of it."""
    cluster: str

    @classmethod
    def here(cls, env: Mapping[str, str] | None = None) -> Me:
        env = os.environ if env is None else env
        element = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        restarts = env.get("SLURM_RESTART_COUNT", "0")
        nodes = env.get("SLURM_JOB_NODELIST", "")
        attempt = f"{env['SLURM_JOB_ID']}.{restarts}"
        return cls(
            element, attempt, int(restarts), nodes, env.get(_CHAIN) or element, env.get("SLURM_CLUSTER_NAME", "")
        )


@dataclass(frozen=True)
class Word:
    """What the controller says of a job."""

    state: str
    reason: str
    restarts: int
    preempted: bool
    """Whether it is to make room for another job, and has only its grace time left."""
    excluded: str
    required: str
    fields: Mapping[str, str]

    @property
    def ours(self) -> bool:
        """Whether it is still for its script to say what comes next.

        COMPLETING: Slurm ends it, by scancel, or to requeue it itself. Only of one whose time is over it does not.
        """
        return self.state == "RUNNING" or (self.state == "COMPLETING" and self.reason == "TimeLimit")


def ask(element: str) -> Word:
    """Raises SlurmError where the controller stays away."""
    fields = job_fields(patiently(lambda: client.run("scontrol", "show", "job", element).stdout))
    return Word(
        state=fields.get("JobState", ""),
        reason=fields.get("Reason", ""),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        excluded=_names(fields.get("ExcNodeList", "")),
        required=_names(fields.get("ReqNodeList", "")),
        fields=fields,
    )


#: Fields whose text may have blanks and `=` in it; each is the last one of its line.
_FREE_TEXT = ("JobName", "Command", "WorkDir", "Comment", "AdminComment", "SystemComment", "StdErr", "StdIn", "StdOut")
_FIELD = re.compile(
    rf"(?:^|\s)(?:(?P<free>{'|'.join(_FREE_TEXT)})=(?P<rest>.*)|(?P<key>[\w/:.\[\]-]+)=(?P<value>\S*))", re.S
)
_LINE = re.compile(r"\n {3}(?=\S+=)")


def job_fields(text: str) -> dict[str, str]:
    """The fields that `scontrol show job` prints for one job.

    scontrol quotes nothing. The first value of a name counts: texts of users stand at the end of a line, and all of
    them but the job's name stand below the fields that are read here.
    """
    fields: dict[str, str] = {}
    for line in _LINE.split(text.rstrip("\n")):
        for found in _FIELD.finditer(line):
            fields.setdefault(found["free"] or found["key"], found["rest"] if found["free"] else found["value"])
    return fields


def _names(text: str) -> str:
    return "" if text in ("(null)", "None") else text


def patiently(question: Callable[[], _Answer]) -> _Answer:
    """The answer; asked again as long as the controller is away. Raises SlurmError."""
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
    """`node[1-2]` is node1, node2."""
    return client.run("scontrol", "show", "hostnames", nodes).stdout.split() if nodes else []


def requeue(element: str) -> bool:
    """Back into the queue, under the same number. False where that is not allowed here. Raises SlurmError."""
    try:
        patiently(lambda: client.requeue([element]))
    except client.SlurmError as error:
        if error.unanswered:
            raise
        print(f"cannot be requeued ({error.said})", flush=True)
        return False
    return True


def keep_away(element: str, word: Word, nodes: Sequence[str]) -> None:
    """Of a job that waits: never on these nodes, besides those that it shuns already."""
    shunned = ",".join([*([word.excluded] if word.excluded else []), *nodes])
    client.run("scontrol", "update", f"JobId={element}", f"ExcNodeList={shunned}")


def room_without(partition: str, nodes: Sequence[str], needed: int) -> bool:
    """Whether enough usable nodes are left in a partition without these."""
    answer = patiently(lambda: client.run("sinfo", "-h", "-N", "-p", partition, "-o", "%N %t"))
    rows = [line.split() for line in answer.stdout.splitlines()]
    dead = ("down", "drain", "drng", "fail", "inval", "unk", "maint", "futr")
    # a line `CLUSTER: name` comes first where SLURM_CLUSTERS is set
    usable = {row[0] for row in rows if len(row) > 1 and row[0] != "CLUSTER:" and not row[1].startswith(dead)}
    return len(usable - set(nodes)) >= needed


def how_it_ended(element: str, attempt: str) -> str:
    """Slurm's word for a start that could not say itself how it ended; "" where the accounting does not know."""
    number, _, place = attempt.partition(".")
    try:
        rows = [row for row in client.sacct([element], every_run=True) if str(row.job_id) == number]
    except client.SlurmError as error:
        print(f"how the start before ended is not known: {error}", flush=True)
        return ""
    rows.sort(key=lambda row: row.started or row.submitted or 0)
    return rows[int(place)].state.word if int(place) < len(rows) else ""


# -- a continuation ----------------------------------------------------------------------------------------------------


def continuation(
    sweep: Path, trials: Sequence[int], me: Me, word: Word, script: Sequence[str], away: Sequence[str]
) -> str:
    """Submit the script (with its words) once more, to start when this job is gone, for these trials of it.

    Returns the new element; jobs that wait for this one wait for that one then. It asks for what this job has, whatever
    of it stood on sbatch's command line. Raises SlurmError.
    """
    task = me.element.partition("_")[2]
    options = [f"--array={task}", f"--dependency=afterany:{me.element}", "--export=ALL", *_request(word)]
    shunned = ",".join([*([word.excluded] if word.excluded else []), *away])
    if shunned:
        options.append(f"--exclude={shunned}")
    ignored = {*profile.overriding(Path(script[0]).read_text(encoding="utf-8")), *_OF_THIS_START}
    env = {name: value for name, value in client.environment().items() if name not in ignored} | {_CHAIN: me.chain}
    made = patiently(
        lambda: client.sbatch(
            Path(script[0]), options, script_args=script[1:], env=env, cwd=Path(word.fields.get("WorkDir", "."))
        )
    )
    folder = sweep / "slurm"
    folder.mkdir(exist_ok=True)
    for trial in trials:
        whole_file.write_text(folder / f"trial{trial}-after-{me.element}.id", f"{made.job_id}\n")
    _bring_dependents(me.element.partition("_")[0], made.job_id)
    return f"{made.job_id}_{task}"


def _request(word: Word) -> list[str]:
    env, fields = os.environ, word.fields
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
    """Jobs of this user that wait for the array `array` wait for `later` in the same way as well."""
    rows = client.run("squeue", "--me", "-h", "-t", "PENDING", "-o", "%i|%E").stdout.splitlines()
    for row in rows:
        job, _, waits = row.partition("|")
        kinds = re.findall(rf"(after\w+):{array}(?:_\S+?)?(?:\(\w+\))?(?=,|\?|$)", waits)
        kinds = [kind for kind in kinds if kind != "after"]
        if kinds and job.partition("_")[0] != str(later):
            kept = re.sub(r"\(\w+\)", "", waits)
            more = ",".join(f"{kind}:{later}" for kind in dict.fromkeys(kinds))
            client.run("scontrol", "update", f"JobId={job}", f"Dependency={kept},{more}")
