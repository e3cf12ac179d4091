"""What Slurm's commands print, as typed rows. Text in, rows out; `launcher.slurm.client` runs the commands.

Checked against the output of Slurm 22.05.8; where another version is known to differ, the comment names it.
Times are seconds since 1970 (the commands are run with SLURM_TIME_FORMAT=%s), durations are seconds, memory is MB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launcher.slurm.state_words import State, state
from launcher.units import parse_time_limit

# -- values ------------------------------------------------------------------------------------------------------------

NOTHING = {"", "N/A", "n/a", "NONE", "None", "None assigned", "Unknown", "(null)", "NOT_SET", "INVALID"}
NOTHING |= {"Partition_Limit"}  # sacct: the job has not started and asked for no limit
_WITHOUT_LIMIT = {"UNLIMITED", "infinite", "INFINITE"}


def duration(text: str) -> float | None:
    """Seconds; None if there is no value, inf if there is no limit. Raises ValueError for text Slurm never prints."""
    if text in NOTHING:
        return None
    if text in _WITHOUT_LIMIT:
        return math.inf
    return parse_time_limit(re.sub(r"\.\d+$", "", text))  # sacct prints fractions of a second


def moment(text: str) -> float | None:
    """Seconds since 1970, or None (`Unknown`, `N/A`, `None`)."""
    return None if text in NOTHING else float(text)


def limit(text: str) -> float:
    """A number that may be UNLIMITED (or absent, which means the same)."""
    return math.inf if text in NOTHING | _WITHOUT_LIMIT else float(text)


def resources(text: str) -> dict[str, float]:
    """`cpu=32,mem=125G,gres/gpu=4` as numbers; memory in MB."""
    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {name: megabytes(value) if name == "mem" else float(value) for name, _, value in pairs}


def megabytes(text: str) -> float:
    """MB from `64000`, `64000+` (sinfo, if nodes differ), `62.50G`, `125G`, `1.5T`."""
    number, unit = re.fullmatch(r"([\d.]+)([KMGTP]?)\+?", text).groups()  # type: ignore[union-attr]
    return float(number) * 1024.0 ** {"K": -1, "": 0, "M": 0, "G": 1, "T": 2, "P": 3}[unit]


def gpus(gres: str) -> dict[str, int]:
    """GPUs of a node by type: `gpu:8` is {"": 8}, `gpu:a100:4(S:0-1),gpu:v100:2,shard:8` is {"a100": 4, "v100": 2}."""
    counts: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)(?![^,(])", gres):
        counts[kind] = counts.get(kind, 0) + int(count)
    return counts


def tasks(spec: str) -> list[int]:
    """The indices of an array: `0-2,7`, `0-90:30`, with or without a `%2` at the end. Raises ValueError."""
    indices: list[int] = []
    for part in spec.partition("%")[0].split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not numbers:
            raise ValueError(f"{spec!r} is no array specification")
        first, last, step = numbers.groups()
        indices += range(int(first), int(last or first) + 1, int(step or 1))
    return indices


def array_spec(indices: Iterable[int], at_once: int | None = None) -> str:
    """The shortest --array for indices: [0, 1, 2, 7] is `0-2,7`; `at_once` adds `%N`. ValueError if there are none."""
    spans: list[list[int]] = []
    for index in sorted(set(indices)):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    if not spans:
        raise ValueError("an array of no elements")
    spec = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return spec if at_once is None else f"{spec}%{at_once}"


# -- squeue ------------------------------------------------------------------------------------------------------------

SEPARATOR = "|"
# The only free text is the reason, which comes last: a job's name or comment may hold any character, even a newline.
QUEUE_FIELDS = (
    "JobID", "ArrayJobID", "ArrayTaskID", "State", "SubmitTime", "StartTime", "TimeUsed", "TimeLimit", "RestartCnt",
    "NumNodes", "NodeList", "Partition", "Reason",
)  # fmt: skip
# -O, because -o has no letter for the restarts. `:` and a suffix stop squeue from cutting after 20 characters.
QUEUE_FORMAT = ",".join(f"{name}:{SEPARATOR}" for name in QUEUE_FIELDS)


@dataclass(frozen=True)
class QueueRow:
    """A job or an array element in squeue: waiting, running or recently ended."""

    job_id: int
    """Its own id. An element gets one only when it starts; until then this is the array's id."""
    array_id: int | None
    task_id: int | None
    """None if it is not an array element."""
    state: State
    reason: str
    """Why it waits; "" if Slurm gives no reason. Usually one word, but Slurm may write a sentence here."""
    submitted: float | None
    started: float | None
    """While it waits: when Slurm expects it to start, if it knows."""
    elapsed: float
    limit: float
    """inf: no limit."""
    restarts: int
    node_count: int
    nodes: str
    """Such as `node[1-2]`; "" while it waits."""
    partition: str

    @property
    def name(self) -> str:
        """The name that scancel, sacct and scontrol take: `69_2` or `70`."""
        return f"{self.job_id}" if self.task_id is None else f"{self.array_id}_{self.task_id}"


def queue_rows(text: str) -> list[QueueRow]:
    """Rows of `squeue -r -h -O QUEUE_FORMAT`. Raises ValueError with the line that cannot be read."""
    return [_queue_row(parts) for parts in records(text, len(QUEUE_FIELDS))]


def _queue_row(parts: list[str]) -> QueueRow:
    job, array, task, word, submitted, started, elapsed, most, restarts, count, nodes, partition, reason = parts
    single = task in NOTHING  # ArrayJobID then repeats the job's own number
    return QueueRow(
        job_id=int(job),
        array_id=None if single else int(array),
        task_id=None if single else int(task),
        state=state(word),
        reason="" if (reason := reason.rstrip(SEPARATOR)) in NOTHING else reason,
        submitted=moment(submitted),
        started=moment(started),
        elapsed=duration(elapsed) or 0.0,
        limit=math.inf if (seconds := duration(most)) is None else seconds,
        restarts=int(restarts),
        node_count=int(count),
        nodes="" if nodes in NOTHING else nodes,
        partition=partition,
    )


def records(text: str, fields: int) -> Iterator[list[str]]:
    """Each line split into `fields` fields; the last field keeps its separators. Raises ValueError."""
    for line in text.splitlines():
        if not line.strip() or line.startswith("CLUSTER: "):  # the header that -M prints even with -h
            continue
        parts = line.split(SEPARATOR, fields - 1)
        if len(parts) != fields:
            raise ValueError(f"{fields} fields expected: {line!r}")
        yield parts


# -- sacct -------------------------------------------------------------------------------------------------------------

ACCOUNT_FIELDS = (
    "JobID", "JobIDRaw", "State", "ExitCode", "DerivedExitCode", "Submit", "Start", "End", "ElapsedRaw", "TimelimitRaw",
    "NNodes", "NodeList", "Partition", "Account", "QOS", "AllocTRES", "Reason",
)  # fmt: skip
# `Restarts` exists only from 23.11 on: count the REQUEUED and NODE_FAIL rows of `sacct -D` instead.


@dataclass(frozen=True)
class AccountRow:
    """A job or an array element in the accounting, which lags seconds behind squeue."""

    job_id: int
    """Its own id (JobIDRaw); for an element that has not started, the array's id."""
    array_id: int | None
    task_id: int | None
    state: State
    exit_code: int
    exit_signal: int
    """The batch script's. If a step failed and the script did not, only the derived values show it."""
    derived_exit_code: int
    derived_signal: int
    """The highest of all steps. Exit code 9 with derived signal 9: killed, often because of its memory."""
    submitted: float | None
    started: float | None
    ended: float | None
    elapsed: float
    limit: float | None
    """inf: no limit; None: the partition's."""
    node_count: int
    nodes: str
    partition: str
    account: str
    qos: str
    allocated: dict[str, float]
    """What Slurm allocated: cpu, node, mem (MB), gres/gpu."""
    reason: str

    @property
    def name(self) -> str:
        return f"{self.job_id}" if self.task_id is None else f"{self.array_id}_{self.task_id}"


def account_rows(text: str) -> list[AccountRow]:
    """Rows of `sacct -X -n -P -o ...`; the line for all waiting elements, `69_[2-3%2]`, becomes a row each."""
    return [row for parts in records(text, len(ACCOUNT_FIELDS)) for row in _account_rows(parts)]


def _account_rows(parts: list[str]) -> Iterator[AccountRow]:
    name, raw, word, code, derived, submitted, started, ended, elapsed, most, count, nodes, *rest, reason = parts
    partition, account, qos, allocated = rest
    array, _, spec = name.partition("_")
    elements: list[int] | list[None] = tasks(spec.strip("[]")) if spec else [None]
    for task in elements:
        yield AccountRow(
            job_id=int(raw),
            array_id=None if task is None else int(array),
            task_id=task,
            state=state(word),
            exit_code=_codes(code)[0],
            exit_signal=_codes(code)[1],
            derived_exit_code=_codes(derived)[0],
            derived_signal=_codes(derived)[1],
            submitted=moment(submitted),
            started=moment(started),
            ended=moment(ended),
            elapsed=float(elapsed or 0),
            limit=duration(most),
            node_count=int(count or 0),
            nodes="" if nodes in NOTHING else nodes,
            partition=partition,
            account=account,
            qos=qos,
            allocated=resources(allocated),
            reason="" if reason in NOTHING else reason,
        )


def _codes(text: str) -> tuple[int, int]:
    """`3:0` is exit code 3, `0:9` signal 9; empty while it has not ended."""
    code, _, number = (text or "0:0").partition(":")
    return int(code), int(number or 0)
