"""One trial as a row of a live table, or as a part of a line; `watch`, local runs and `wait=true` share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.status.losses import ASCII, BLOCKS, Losses, sparkline
from launcher.status.trial_state import TrialState
from launcher.sweep import evaluation
from launcher.sweep.metrics import TrialProgress
from launcher.terminal import printable
from launcher.units import clock, when

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = {
    "DONE": "green", "FAILED": "red", "UNSUBMITTED": "red", "CANCELLED": "yellow", "STOPPING": "yellow",
    "WAITING": "dim", "UNKNOWN": "magenta",
}  # fmt: skip
WIDE = 100  # from this many columns on, a row shows more
_CELL = 60  # characters of one trial in a plain line, at most
_SILENT_S = 60.0  # a running trial that has written nothing for longer is shown as silent


def rows_table(
    rows: Sequence[TrialState],
    names: Mapping[int, str],
    console: Console,
    losses: Losses | None = None,
    selected: int | None = None,
) -> Table:
    """A table of rich. `names`: overrides that differ besides beta, by trial number; `selected`: index of a row.

    Text from trials is wrapped in rich's Text, so that brackets in it are not read as markup.
    """
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    wide = console.width >= WIDE
    bar, spark = (24, 16) if wide else (6, 6)
    levels = BLOCKS if console.encoding.lower().startswith("utf") else ASCII
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    if selected is not None:
        table.add_column("", width=1)
    table.add_column("#", justify="right", no_wrap=True)
    plain = not any(names.values())
    table.add_column("beta", no_wrap=True, max_width=30 if wide else 24 if plain else 14, overflow="ellipsis")
    table.add_column("state", no_wrap=True, max_width=26 if wide else 14, overflow="ellipsis")
    table.add_column("", width=bar)
    for head in ("step", "loss"):
        table.add_column(head, justify="right", no_wrap=True)
    if losses is not None:
        table.add_column("", width=spark, no_wrap=True)
    for head in ("acc", "left"):
        table.add_column(head, justify="right", no_wrap=True)
    for place, state in enumerate(rows):
        progress = state.progress
        beta = f"{state.trial.beta:g}" if state.trial.beta is not None else ""
        steps = progress.max_steps
        cells = [
            str(state.trial.number),
            Text(printable(" ".join(filter(None, (beta, names[state.trial.number]))))),
            Text(printable(doing(state)), COLOURS.get(state.state, "")),
            ProgressBar(total=steps, completed=progress.step, width=bar) if steps else "",
            f"{progress.step}/{steps}" if steps else "",
            figure(progress.loss, ".4f"),
            *([sparkline(losses.of(state.trial.folder), spark, levels) if state.log else ""] if losses else []),
            figure(progress.accuracy, ".2f"),
            time_left(state),
        ]
        if selected is not None:
            cells.insert(0, ">" if place == selected else "")
        table.add_row(*cells, style="reverse" if place == selected and console.color_system else "")
    return table


def doing(state: TrialState) -> str:
    """What a trial is doing, in a few words: `waits, Priority`, `validating 12 s, 16/64 pairs`, `FAILED`."""
    if state.state == "WAITING":
        return f"waits, {state.slurm_reason}" if state.slurm_reason not in ("", "None") else "waits"
    if state.evaluating:
        return evaluation.read(state.trial.folder).text or "evaluating"
    if state.state != "RUNNING":
        return state.state if state.state == "FAILED" else state.state.lower()
    return phase(state.progress)


def phase(progress: TrialProgress) -> str:
    """The phase of a running trial, for how long it has been in it, and its progress."""
    if not progress.phase:
        return "starting"
    if progress.phase == "done":
        return "done"
    if _silent(progress):
        return f"{progress.phase}, silent {clock(progress.silent or 0.0)}"
    if progress.phase == "training" and progress.step:
        return "training"
    since = f" {clock(progress.in_phase)}" if progress.in_phase is not None else ""
    return f"{progress.phase}{since}" + (f", {progress.detail}" if progress.detail else "")


def cell(state: TrialState) -> str:
    """One running trial in about 30 characters: `#0 13/24 loss 0.612 acc 0.75`."""
    progress, number = state.progress, state.trial.number
    if state.evaluating:
        return f"#{number} {doing(state)}"[:_CELL]
    if progress.phase != "training" or not progress.step:
        return f"#{number} {printable(phase(progress))}"[:_CELL]
    total = f"/{progress.max_steps}" if progress.max_steps else ""
    parts = [f"#{number} {progress.step}{total}"]
    parts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    parts += [f"acc {progress.accuracy:.2f}"] if progress.accuracy is not None else []
    parts += [f"silent {clock(progress.silent or 0.0)}"] if _silent(progress) else []
    return " ".join(parts)


def time_left(state: TrialState) -> str:
    """Of a running trial, the time until its last step; of a waiting one, when Slurm expects it to start."""
    if state.state == "WAITING" and state.expected:
        return f"~{when(state.expected)}"
    eta = state.progress.eta
    return clock(eta) if state.state == "RUNNING" and eta is not None else ""


def figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _silent(progress: TrialProgress) -> bool:
    return progress.silent is not None and progress.silent > _SILENT_S
