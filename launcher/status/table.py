"""The states of a sweep's trials as a table of text, in 80 columns or more.

Plain strings, no rich: a thousand rows take milliseconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from launcher.slurm.rows import array_spec
from launcher.status.rows import figure, time_left
from launcher.status.trial_state import Look, TrialState, counts_text
from launcher.sweep import bad_nodes
from launcher.sweep.trial import labels
from launcher.terminal import cut, printable
from launcher.units import clock, when

COLOURS = {
    "DONE": "32", "FAILED": "31", "CANCELLED": "33", "STOPPING": "33", "WAITING": "2", "UNKNOWN": "35",
    "UNSUBMITTED": "31",
}  # fmt: skip
_MANY_WAITING = 8  # more equal rows become one row
_MOST_REMARKS = 12


@dataclass(frozen=True)
class Column:
    head: str
    cell: Callable[[TrialState], str]
    left_out: int
    """If there is no room, the column with the highest number is left out first; 0: never."""
    right: bool = True


def table(look: Look, width: int = 80, *, colour: bool = False, full: bool = False) -> str:
    """A head line, a row for each trial, and why trials wait or failed. No line is wider than `width` (at least 80)."""
    names = labels([state.trial for state in look.trials])
    groups = _grouped(look.trials, full)
    lines = [_title(look, width), *_body(groups, names, width, colour)]
    remarks = [part for line in _remarks(look) for part in _wrapped(printable(line), width)]
    return "\n".join(lines + ([""] + remarks if remarks else []))


def _title(look: Look, width: int) -> str:
    asked_at = time.strftime("%H:%M:%S", time.localtime(look.answers.time))
    name = f"{look.sweep.experiment.get('name', '')} {look.sweep.shown}"
    rest = f" | {counts_text(look.trials)} | {asked_at}"
    return cut(printable(name), max(20, width - len(rest)), middle=True) + rest


def _grouped(states: Sequence[TrialState], full: bool) -> list[list[TrialState]]:
    """One row for each trial; many neighbours that wait for the same reason and have not started become one row."""

    def alike(state: TrialState) -> object:
        if state.state not in ("WAITING", "UNSUBMITTED") or state.log:
            return state.trial.number
        return state.state, state.reason, state.restarts

    rows: list[list[TrialState]] = []
    for _, some in groupby(states, key=alike):
        group = list(some)
        rows += [group] if len(group) > _MANY_WAITING and not full else [[state] for state in group]
    return rows


def columns(names: dict[int, str]) -> list[Column]:
    """All columns, the least important with the highest number."""
    return [
        Column("beta", lambda s: "" if s.trial.beta is None else f"{s.trial.beta:g}", 0),
        *([Column("overrides", lambda s: names[s.trial.number], 3, right=False)] if any(names.values()) else []),
        Column("state", lambda s: s.state.lower(), 0, right=False),
        Column("nodes", _nodes, 9, right=False),
        Column("elapsed", lambda s: "" if s.elapsed is None else clock(s.elapsed), 5),
        Column("limit", lambda s: "" if s.limit is None else "none" if math.isinf(s.limit) else clock(s.limit), 8),
        Column("again", lambda s: str(s.restarts) if s.restarts else "", 6),
        Column("step", _step, 1),
        Column("loss", lambda s: figure(s.progress.loss, ".4f"), 2),
        Column("acc", lambda s: figure(s.progress.accuracy, ".2f"), 4),
        Column("left", time_left, 3),
        Column("alive", _alive, 7),
        Column("exit", lambda s: s.exit_code.split(",")[0], 10),
    ]


def _body(groups: list[list[TrialState]], names: dict[int, str], width: int, colour: bool) -> list[str]:
    shown = columns(names)
    numbers = [_span(group) for group in groups]
    cells = [[printable(_cell(column, group)) for column in shown] for group in groups]
    keep = [place for place in range(len(shown)) if any(row[place] for row in cells)]
    widths = {place: max(len(shown[place].head), *(len(row[place]) for row in cells)) for place in keep}
    first = max([1, *map(len, numbers)])
    for place in keep:
        if shown[place].head in ("overrides", "nodes"):
            widths[place] = min(widths[place], max(12, width // 4))

    def needed() -> int:
        return first + sum(widths[place] + 2 for place in keep)

    while needed() > width:
        least = max(keep, key=lambda place: shown[place].left_out)
        if shown[least].left_out == 0:
            break
        keep.remove(least)
    for place in sorted(set(range(len(shown))) - set(keep), key=lambda place: shown[place].left_out):
        if place in widths and needed() + widths[place] + 2 <= width:
            keep = sorted([*keep, place])  # a narrow column may fit in place of a wide one

    def line(number: str, row: Sequence[str], state: str = "") -> str:
        text = number.rjust(first)
        for place in keep:
            column, room = shown[place], widths[place]
            word = cut(row[place], room)
            word = word.rjust(room) if column.right else word.ljust(room)
            if column.head == "state" and colour and state in COLOURS:
                word = f"\x1b[{COLOURS[state]}m{word}\x1b[0m"
            text += "  " + word
        return text.rstrip()

    head = line("#", [column.head for column in shown])
    body = zip(numbers, cells, groups, strict=True)
    return [head, *(line(number, row, group[0].state) for number, row, group in body)]


def _span(group: Sequence[TrialState]) -> str:
    first, last = group[0].trial.number, group[-1].trial.number
    return str(first) if first == last else f"{first}-{last}"


def _cell(column: Column, group: Sequence[TrialState]) -> str:
    if len(group) == 1 or column.head in ("state", "limit", "again"):
        return column.cell(group[0])
    return "..." if column.head == "beta" else ""


def _nodes(state: TrialState) -> str:
    return state.nodes or (str(state.node_count) if state.node_count else "")


def _step(state: TrialState) -> str:
    progress = state.progress
    if not progress.max_steps:
        return progress.phase if state.state == "RUNNING" else ""
    return f"{progress.step}/{progress.max_steps}"


def _alive(state: TrialState) -> str:
    return "" if state.progress.silent is None or state.state == "DONE" else clock(state.progress.silent)


def _remarks(look: Look) -> list[str]:
    """Which commands did not answer; why trials wait and until when; why they failed. Equal remarks share a line."""
    trials_by_remark: dict[tuple[str, str], list[TrialState]] = {}
    for state in look.trials:
        text = state.remark
        if text:
            trials_by_remark.setdefault((state.state, text), []).append(state)
    order = {"FAILED": 0, "UNKNOWN": 1, "CANCELLED": 2, "UNSUBMITTED": 2}
    lines = []
    for (word, text), states in sorted(trials_by_remark.items(), key=lambda item: order.get(item[0][0], 3)):
        expected = [state.expected for state in states if state.expected]
        soon = f"; expected {when(min(expected))}" if expected else ""
        lines.append(f"{array_spec([state.trial.number for state in states])} {word.lower()}: {text}{soon}")
    by_evaluation: dict[str, list[int]] = {}
    for state in look.trials:
        if state.evaluation:
            by_evaluation.setdefault(state.evaluation, []).append(state.trial.number)
    lines += [f"{array_spec(numbers)} {text}" for text, numbers in by_evaluation.items()]
    rest = len(lines) - _MOST_REMARKS
    lines = lines[:_MOST_REMARKS] + ([f"... and {rest} more; see --full, or --json for everything"] if rest > 0 else [])
    failed = next((state for state in look.trials if state.state == "FAILED" and state.log), None)
    if failed:
        lines.append(f"why: python -m launcher logs {failed.trial.number} {look.sweep.shown}")
    for node in bad_nodes.read(look.sweep.folder):
        lines.append(f"avoids node {node.name} since trial {node.trial}: {node.why}")
    return [f"! {trouble}" for trouble in look.answers.troubles] + lines


def _wrapped(line: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(line, width, subsequent_indent="  ", max_lines=3, placeholder=" …") or [line]
