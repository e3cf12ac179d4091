"""Slurm's words for the states of jobs. Checked against Slurm 22.05.8; comments name versions that differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """What one of Slurm's state words says about a job."""

    word: str
    phase: str
    """waiting, running, done (exit code 0) or failed (any other end). An unknown word counts as running, so that the
    same work is not started a second time."""
    meaning: str

    @property
    def ended(self) -> bool:
        return self.phase in ("done", "failed")


STATES: dict[str, State] = {
    word: State(word, phase, meaning)
    for word, phase, meaning in (
        ("PENDING", "waiting", "waits for its turn"),
        ("REQUEUED", "waiting", "went back into the queue"),  # an earlier run, in `sacct -D` only; squeue says PENDING
        ("REQUEUE_FED", "waiting", "went back into another cluster's queue"),
        ("REQUEUE_HOLD", "waiting", "went back into the queue and is held"),
        ("RESV_DEL_HOLD", "waiting", "held, for its reservation was deleted"),
        ("SPECIAL_EXIT", "waiting", "went back into the queue and is held, for its exit code"),
        ("CONFIGURING", "running", "its nodes get ready"),
        ("POWER_UP_NODE", "running", "its nodes are powered up"),
        ("RUNNING", "running", "runs"),
        ("RESIZING", "running", "changes its size"),
        ("REVOKED", "running", "is on another cluster of the federation"),  # until it ends there
        ("SIGNALING", "running", "is sent a signal"),
        ("STAGE_OUT", "running", "stages its files out"),
        ("STOPPED", "running", "is stopped and keeps its nodes"),
        ("SUSPENDED", "running", "is suspended"),
        ("COMPLETING", "running", "its nodes are being cleaned"),  # Slurm gives the final state only after this
        ("COMPLETED", "done", "ended with exit code 0 on every node"),
        ("BOOT_FAIL", "failed", "a node did not boot"),
        ("CANCELLED", "failed", "was cancelled"),  # sacct 22.05: `CANCELLED by 1000`
        ("DEADLINE", "failed", "its deadline passed"),
        ("FAILED", "failed", "ended with another exit code than 0"),
        ("LAUNCH_FAILED", "failed", "could not be launched"),  # from 23.02 on; 22.05 says NODE_FAIL or FAILED
        ("NODE_FAIL", "failed", "a node failed"),  # unless --no-requeue was given, a PENDING row follows at once
        ("OUT_OF_MEMORY", "failed", "took more memory than it asked for"),  # 22.05 may say FAILED 9:0 or 1:0 of the job
        ("PREEMPTED", "failed", "had to make room for another job"),  # where it is requeued, a PENDING row follows
        ("RECONFIG_FAIL", "failed", "a node could not be reconfigured"),
        ("TIMEOUT", "failed", "reached its time limit"),
    )
}


def state(text: str) -> State:
    """The state in a column of squeue or sacct: `RUNNING`, `CANCELLED by 0`, `COMPLETED+` (cut by sacct without -P)."""
    word = (text.split() or ["(none)"])[0].rstrip("+")
    return STATES.get(word, State(word, "running", f"a state this launcher does not know: {text}"))
