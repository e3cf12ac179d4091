"""The live view of trials: a table that is redrawn on a terminal, and plain lines where there is none.

The caller passes the states; the view reads the progress of running trials from their folders when it is about to show
it. If the view can no longer write (a closed pipe, a terminal that is gone), it stops; the trials go on.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from launcher.status.rows import cell, rows_table
from launcher.status.trial_state import LIVE, TrialState, counts_text
from launcher.sweep.trial import Trial, labels
from launcher.terminal import can_redraw, printable
from launcher.units import clock, when

if TYPE_CHECKING:
    from rich.console import Group

WIDTH = 80  # no line is longer
_TABLE_S = 0.5  # between two drawings of the table
_OVERVIEW_S = 4.0  # between two lines about all running trials: something is printed at least every 5 s
_OLD_S = 60.0  # the age of Slurm's last answer is shown if it is older
_BUSY = ("RUNNING", "STOPPING")


class LiveView(AbstractContextManager["LiveView"]):
    """Call it with the states of all trials as often as you like; it shows them when it is time."""

    def __init__(self, trials: Sequence[Trial], stream: TextIO) -> None:
        self.labels = labels(trials)
        self.stream = stream
        self.started = time.monotonic()
        self.shown = 0.0
        self.broken = False

    def __call__(self, states: Sequence[TrialState], troubles: Sequence[str] = (), age: float = 0.0) -> None:
        """`troubles`: commands that did not answer, one line each; `age`: seconds since Slurm last answered in full."""
        if self.broken:
            return
        try:
            self.show(states, troubles, age)
        except (OSError, ValueError) as error:
            self.give_up(error)

    def show(self, states: Sequence[TrialState], troubles: Sequence[str], age: float) -> None:
        raise NotImplementedError

    def give_up(self, error: Exception) -> None:
        """Stop showing anything, and report that if stderr still works."""
        self.broken = True
        with contextlib.suppress(OSError, ValueError):  # stderr is mostly the same terminal
            print(f"cannot show the progress any more ({error}); the trials go on", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def due(self, every: float) -> bool:
        now = time.monotonic()
        if now - self.shown < every:
            return False
        self.shown = now
        return True


def live_view(trials: Sequence[Trial], stream: TextIO | None = None) -> LiveView:
    """A table if `stream` (by default stdout) is a terminal that can be redrawn, else plain lines."""
    stream = stream or sys.stdout
    return TableView(trials, stream) if can_redraw(stream) else LineView(trials, stream)


class LineView(LiveView):
    """A line for every change of a trial's state and every validation, and regularly one about all running trials.

    It writes no escape codes. `every`: seconds between two lines about all running trials.
    """

    def __init__(self, trials: Sequence[Trial], stream: TextIO, every: float = _OVERVIEW_S) -> None:
        super().__init__(trials, stream)
        self.every = every
        self.seen: dict[int, tuple[str, ...]] = {}
        self.validated: dict[int, int | None] = {}
        self.troubles: tuple[str, ...] = ()
        self.shown = self.started if every > _OVERVIEW_S else 0.0

    def show(self, states: Sequence[TrialState], troubles: Sequence[str], age: float) -> None:
        if tuple(troubles) != self.troubles:
            self.troubles = tuple(troubles)
            for trouble in self.troubles or ("Slurm answers again",):
                self.write(f"! {trouble}")
        first = not self.seen
        for state in states:
            now = (state.state, state.reason, state.error, str(state.restarts))
            if self.seen.get(state.trial.number) != now and not (first and state.state == "WAITING"):
                self.write(self.change(state, first))
            self.seen[state.trial.number] = now
        if first and len(states) > 1:
            self.write(counts_text(list(states)))
        if self.due(self.every):
            if troubles and age > _OLD_S:
                self.write(f"! Slurm's last answer is {clock(age)} old")
            running = [_with_progress(state) for state in states if state.state in _BUSY or state.evaluating]
            for state in running:
                self.validation(state)
            for line in self.overview(states, running):
                self.write(line)

    def write(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {printable(text)}", file=self.stream, flush=True)

    def change(self, state: TrialState, first: bool) -> str:
        trial = " ".join(filter(None, ("trial", state.trial.name, self.labels.get(state.trial.number, ""))))
        if state.state == "DONE" and first:
            return f"{trial} is already done"
        where = f" on {state.nodes}" if state.state == "RUNNING" and state.nodes else ""
        took = f" after {clock(state.elapsed)}" if state.elapsed is not None and state.state not in LIVE else ""
        why = f": {state.remark}" if state.remark else f": {state.error}" if state.error else ""
        soon = f"; expected {when(state.expected)}" if state.expected else ""
        log = f", log {state.log}" if state.state == "RUNNING" and state.log and not state.nodes else ""
        return f"{trial} {state.state.lower()}{where}{took}{why}{soon}{log}"

    def validation(self, state: TrialState) -> None:
        progress, number = state.progress, state.trial.number
        if progress.val_loss is not None and self.validated.get(number, -1) != progress.val_step:
            self.validated[number] = progress.val_step
            accuracy = f", accuracy {progress.val_accuracy:.3f}" if progress.val_accuracy is not None else ""
            text = f"trial {state.trial.name} step {progress.val_step}: validation loss {progress.val_loss:.4f}"
            self.write(text + accuracy)

    def overview(self, states: Sequence[TrialState], running: Sequence[TrialState]) -> list[str]:
        """All running trials, in lines of 80 columns; if they need more than three lines, one line with counts."""
        etas = [state.progress.eta for state in running]
        longest = None if None in etas else max((eta or 0.0 for eta in etas), default=0.0)
        left = [f"{clock(longest)} left"] if longest else []  # 0: trained, and the evaluation has no estimate
        lines = _pack([cell(state) for state in running] + left, WIDTH - len("00:00:00 "))
        if len(lines) <= 3:
            return lines
        steps = [state.progress.step for state in running]
        return [f"steps {min(steps)} to {max(steps)}; {counts_text(list(states))}"]


class TableView(LiveView):
    """A table of the trials, redrawn twice a second, with as many rows as fit on the terminal."""

    def __init__(self, trials: Sequence[Trial], stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(trials, stream)
        self.console = Console(file=stream)  # honours NO_COLOR
        # Drawn from the caller's loop: rich's own thread would run while this process forks others.
        self.live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
        self.last: tuple[Sequence[TrialState], Sequence[str]] | None = None

    def __enter__(self) -> TableView:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.last and not self.broken:
                self.live.update(self.draw(*self.last), refresh=True)
            self.live.stop()
        except (OSError, ValueError) as failed:
            self.give_up(failed)

    def show(self, states: Sequence[TrialState], troubles: Sequence[str], age: float) -> None:
        self.last = states, troubles
        if self.due(_TABLE_S):
            self.live.update(self.draw(states, troubles), refresh=True)

    def draw(self, states: Sequence[TrialState], troubles: Sequence[str] = ()) -> Group:
        """The table, why trials failed, which commands do not answer, and a line of counts."""
        from rich.console import Group
        from rich.text import Text

        failed = [state for state in states if state.state == "FAILED"][-3:]
        notes = [Text(printable(f"trial {s.trial.name} FAILED: {s.remark}"), "red", overflow="fold") for s in failed]
        notes += [Text(printable(f"! {trouble}"), "magenta", overflow="fold") for trouble in troubles]
        room = max(3, self.console.size.height - 4 - 2 * len(notes))
        chosen = sorted(sorted(states, key=_attention)[:room], key=lambda state: state.trial.number)
        hidden = len(states) - len(chosen)
        more = f", {hidden} of them not shown" if hidden else ""
        foot = Text(f"{clock(time.monotonic() - self.started)} | {counts_text(list(states))}{more}", "dim")
        rows = [_with_progress(state) if state.log else state for state in chosen]
        return Group(rows_table(rows, self.labels, self.console), *notes, foot)


def _with_progress(state: TrialState) -> TrialState:
    return replace(state, progress=state.trial.progress())


def _attention(state: TrialState) -> int:
    """The order in which trials are shown if there is no room for all."""
    order = ("RUNNING", "STOPPING", "FAILED", "UNKNOWN", "DONE", "CANCELLED", "UNSUBMITTED", "WAITING")
    return order.index(state.state)


def _pack(cells: Sequence[str], room: int) -> list[str]:
    """Join the cells into as few lines of `room` characters as possible."""
    lines: list[str] = []
    for text in cells:
        if lines and len(lines[-1]) + len(text) + 3 <= room:
            lines[-1] += f" | {text}"
        else:
            lines.append(text)
    return lines
