"""What is to be done when a start of a trial has ended: go on or give up. Facts in, decision out; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.sweep.starts import SAID, Kind, Start

#: The key of `cluster` that bounds how often a start may end so, and its default.
BOUNDS: dict[str, tuple[str, int]] = {
    "timeout": ("max_timeouts", 20),
    "failure": ("max_restarts", 3),
    "node": ("max_node_failures", 5),
}
#: What is nobody's fault; bounded all the same, so that nothing goes round for ever.
INNOCENT = frozenset({"preempted", "asked", "requeued"})
MOST_INNOCENT = 1000
#: Errors of the program or its config: the next start would end the same way.
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
    """Whether that node failed its check, which leaves no doubt."""


@dataclass(frozen=True)
class Decision:
    go_on: bool
    why: str
    """Of giving up: the reason, for people; else ""."""
    exclude: Sequence[str] = field(default_factory=tuple)
    """Nodes to keep away from, from here on."""
    acquit: Sequence[str] = field(default_factory=tuple)
    """Nodes that were blamed for what happens on others as well."""


def decide(
    chain: Sequence[Start], now: Start, ending: Ending, cluster: Mapping[str, Any], blamed: Mapping[str, str]
) -> Decision:
    """`chain`: the ended starts before `now` that follow from the same submission, oldest first; `cluster`: the trial's
    config of that name; `blamed`: the sweep's bad nodes and why.
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
        return Decision(False, f"{SAID[ending.kind]} {times}, and cluster.{key}={most}: {ending.why}", acquit=alike)
    if alike:
        why = f"fails the same way on {' and '.join([*alike, ending.suspect])}, so it is not the node: {ending.why}"
        return Decision(False, why, acquit=alike)
    if ending.kind != "node" and not excluded and ending.step <= now.first_step:
        before = next((start for start in reversed(chain) if start.kind in ("timeout", "failure")), None)
        # one that was warned may have brought the trial on since then
        if before and not before.blamed and not before.progress and before.last_step >= ending.step:
            return Decision(False, f"no progress in two starts, both from step {ending.step}: {ending.why}")
    return Decision(True, "", exclude=excluded)
