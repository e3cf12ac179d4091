"""Explains in plain words why a job waits, and how it ended."""

from __future__ import annotations

import re

from launcher.slurm.rows import AccountRow, QueueRow
from launcher.units import clock

#: What squeue's reason means to the user, and what to do if the job will never start by itself.
WAITS: dict[str, str] = {
    "": "waits for its turn",
    "None": "waits for its turn",
    "Priority": "others come first",
    "Resources": "waits for free nodes",
    "BeginTime": "waits for its start time (after a requeue, Slurm holds it for some minutes)",
    "Cleaning": "its last run is being cleaned up",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "never starts: the job it depends on failed; cancel it, then retry",
    "JobArrayTaskLimit": "waits for other trials of its array (cluster.array_parallelism)",
    "JobHeldUser": "held by its user; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator, who alone can release it",
    "JobLaunchFailure": "could not be started; held or tried again",
    "launch_failed_requeued_held": "could not be started and is held; `scontrol release` lets it go",
    "PartitionDown": "does not start while its partition is down",
    "PartitionInactive": "does not start while its partition is inactive",
    "PartitionTimeLimit": "never starts: its time limit is above the partition's",
    "PartitionNodeLimit": "never starts: it asks for more nodes than the partition gives",
    "PartitionConfig": "never starts: it asks for more than the partition gives",
    "ReqNodeNotAvail": "waits for nodes that are down, reserved or drained",
    "Reservation": "waits for its reservation",
    "ReservationDeleted": "never starts: its reservation was deleted",
    "Licenses": "waits for licences",
    "NodeDown": "waits for a node that is down",
    "BadConstraints": "never starts: no nodes meet what it asks for",
    "InvalidAccount": "never starts: its account is not valid",
    "InvalidQOS": "never starts: its QoS is not valid",
    "AccountNotAllowed": "never starts: its account may not use this partition",
}
_GROUPS = (
    ("Assoc", "the limit of its account is reached"),
    ("QOS", "the limit of its QoS is reached"),
    ("MaxJobs", "its user runs as many jobs as the site allows"),
)


#: In an error of sbatch -> the key that it is about and what to do. The first that matches counts.
_REFUSED = (
    (
        r"SubmitJob|job submit limit|MaxSubmit",
        "cluster.account",
        "sweep over fewer values at a time, wait until jobs of yours have ended, or run several trials in one job:"
        " cluster.trials_per_node",
    ),
    (r"MaxArraySize|Invalid job array", "cluster", "sweep over fewer values at a time"),
    (r"MaxJobCount|Job limit exceeded|temporarily unavailable", "cluster", "the queue is full: try again later"),
    (r"Invalid account", "cluster.account", "name one of yours: `sacctmgr show assoc user=$USER` lists them"),
    (r"(?i)\bqos\b", "cluster.qos", "name one that your account may use"),
    (r"(?i)time ?limit", "cluster.time", "lower it"),
    (r"(?i)memory", "cluster.mem_gb", "lower it; where memory is asked for by the CPU: cluster.sbatch.mem_per_cpu=4G"),
    (r"(?i)partition", "cluster.partition", "`sinfo -s` lists those that there are"),
    (
        r"(?i)node configuration|node count|\bgres\b|CPU count",
        "cluster.gpus_per_node",
        "ask for what a node of the partition has: `sinfo -o '%P %D %c %m %G'`",
    ),
)


def refused(error: str) -> tuple[str, str]:
    """(key, remedy) for an error of sbatch; ("cluster", ...) if the error is not a known one."""
    matches = ((key, remedy) for pattern, key, remedy in _REFUSED if re.search(pattern, error))
    return next(matches, ("cluster", "correct the keys that it names"))


def waiting(row: QueueRow) -> str:
    """Why a waiting job waits: Slurm's word, and what it means."""
    if row.state.word in ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"):
        return f"{row.state.meaning}; `scontrol release` lets it go"
    word = row.reason.split(",")[0].split(" ")[0].strip("()")
    words = row.reason.replace(" ", "_")  # squeue writes `launch failed requeued held`
    meaning = WAITS.get(word) or WAITS.get(words)
    meaning = meaning or next((text for start, text in _GROUPS if word.startswith(start)), "")
    if not meaning:
        return row.reason
    return f"{meaning} ({row.reason})" if word not in ("", "None") else meaning


def ended(row: AccountRow | QueueRow) -> str:
    """How a job without a result ended, by Slurm. An error that the job printed says more."""
    word = row.state.word
    if word == "COMPLETED":
        return "Slurm says it ended well, but it left no result.json"
    if word == "CANCELLED":
        # sacct may give a start time even for an element that never started, but then no nodes
        return f"cancelled after {clock(row.elapsed)}" if row.nodes else "cancelled before it started"
    if word == "TIMEOUT":
        limit = row.limit
        return f"reached its time limit of {clock(limit)}" if limit and limit < 1e9 else "reached its time limit"
    if word == "NODE_FAIL":
        return f"a node failed ({row.nodes})" if row.nodes else "a node failed"
    if word == "FAILED" and isinstance(row, AccountRow):
        return code_said(row)
    if word == "FAILED":
        return "ended with another exit code than 0"
    return row.state.meaning


def code_said(row: AccountRow) -> str:
    """`a rank was killed by SIGSEGV`, `exit code 3`."""
    import signal

    number = row.derived_signal or row.exit_signal
    codes = [code for code in (row.derived_exit_code, row.exit_code) if code]
    # srun returns its tasks' highest exit code; a task killed by signal N (1 to 64) counts as 128 + N, or as N
    if not number and codes and 128 < codes[0] <= 128 + 64:
        number = codes[0] - 128
    if number:
        try:
            return f"a rank was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"a rank was killed by signal {number}"
    return f"exit code {codes[0]}" if codes else "failed"


def codes(row: AccountRow) -> str:
    """The exit code as sacct writes it, `3:0`; and the steps' if it differs: `9:0, steps 0:9`.

    Of a cancelled job the steps' code is left out: 24.11 records there the signal by which scancel ended them.
    """
    own = f"{row.exit_code}:{row.exit_signal}"
    derived = f"{row.derived_exit_code}:{row.derived_signal}"
    return own if derived in (own, "0:0") or row.state.word == "CANCELLED" else f"{own}, steps {derived}"
