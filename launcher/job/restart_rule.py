"""Whether a trial continues after a start has ended, or gives up: a pure function of the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.sweep.starts import SAID, Kind, Start

#: By kind of ending: the key of `cluster` that bounds how often it may happen, and its default.
BOUNDS: dict[str, tuple[str, int]] = {
    "timeout": ("max_timeouts", 20),
    "failure": ("max_restarts", 3),
    "node": ("max_node_failures", 5),
}
#: Endings that are no fault of the trial or the node. They are bounded too, so that no trial restarts for ever.
INNOCENT = frozenset({"preempted", "asked", "requeued"})
MOST_INNOCENT = 1000
#: Errors of the program or its config: another start would end in the same way.
REPEATABLE = frozenset(
    {
        "Refused", "RanksDiffer", "ValueError", "TypeError", "KeyError", "IndexError", "AttributeError", "NameError",
        "UnboundLocalError", "AssertionError", "NotImplementedError", "SyntaxError", "ZeroDivisionError",
        "ConfigAttributeError", "ConfigKeyError", "ConfigTypeError", "MissingMandatoryValue", "InterpolationKeyError",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """How a start ended."""

    kind: Kind
    why: str
    step: int
    """Optimizer steps of the last whole checkpoint."""
    suspect: str = ""
    """The node that may be at fault: it failed its check, or a rank failed on it before its first step."""
    unfit: bool = False
    """Whether the node is certainly at fault: it failed its check."""


@dataclass(frozen=True)
class Decision:
    go_on: bool
    why: str
    """Why the trial gives up, for people; "" if it continues."""
    exclude: Sequence[str] = field(default_factory=tuple)
    """Nodes that the sweep avoids from now on."""
    cleared: Sequence[str] = field(default_factory=tuple)
    """Nodes that are no longer blamed: the same error happened on other nodes."""


def decide(
    chain: Sequence[Start], now: Start, ending: Ending, cluster: Mapping[str, int], blamed: Mapping[str, str]
) -> Decision:
    """Decide whether a trial continues after the start `now` has ended with `ending`.

    `chain`: the ended starts of the same submission before `now`, oldest first; `cluster`: the trial's `cluster`
    config; `blamed`: the sweep's bad nodes, each with its reason.
    """
    if ending.kind in ("done", "cancelled", "replaced"):
        return Decision(False, "")
    if ending.kind == "refused":
        return Decision(False, f"{ending.why}: another start would end the same way")
    doubtful = ending.suspect and not ending.unfit
    alike = [node for node, why in blamed.items() if doubtful and node != ending.suspect and why == ending.why]
    excluded = (ending.suspect,) if ending.suspect and not alike else ()
    count = 1 + sum(start.kind == ending.kind for start in chain)
    if ending.kind in INNOCENT:
        count = 1 + sum(start.kind in INNOCENT for start in chain)
        why = f"was interrupted {count} times" if count > MOST_INNOCENT else ""
        return Decision(not why, why)
    key, default = BOUNDS[ending.kind]
    most = int(cluster.get(key, default))
    if count > most:
        times = "once" if count == 1 else f"{count} times"
        return Decision(False, f"{SAID[ending.kind]} {times}, and cluster.{key}={most}: {ending.why}", cleared=alike)
    if alike:
        why = f"fails the same way on {' and '.join([*alike, ending.suspect])}, so it is not the node: {ending.why}"
        return Decision(False, why, cleared=alike)
    if ending.kind != "node" and not excluded and ending.step <= now.first_step:
        before = next((start for start in reversed(chain) if start.kind in ("timeout", "failure")), None)
        # a start that was warned may have made progress since then
        if before and not before.blamed and not before.progress and before.last_step >= ending.step:
            return Decision(False, f"no progress in two starts, both from step {ending.step}: {ending.why}")
    return Decision(True, "", exclude=excluded)
