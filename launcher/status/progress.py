"""The live view of running trials. What it shows is read from the trials' folders at every look, never kept."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from launcher.sweep.folder import Outcome, Trial, labels
from launcher.sweep.metrics import Progress
from launcher.units import clock

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

WIDTH = 80  # columns that every line fits in where the terminal does not say
_LIVE_S = 0.5  # between two pictures
_LINE_S = 4.0  # between two plain lines: a run is never silent for more than 5 s
_CELL = 60  # characters a trial may take of a plain line
_SILENT_S = 60.0  # from then on the view says how long a trial has said nothing
_COLOURS = {"DONE": "green", "FAILED": "red", "CANCELLED": "yellow", "STOPPING": "yellow", "WAITING": "dim"}

Outcomes = Mapping[int, Outcome]


class View(AbstractContextManager["View"]):
    """Called with the outcome of every trial so far, as often as one likes; shows it when it is time."""

    def __init__(self, trials: Sequence[Trial], stream: TextIO) -> None:
        self.trials = trials
        self.labels = labels(trials)
        self.stream = stream
        self.started = time.monotonic()
        self.shown = 0.0

    def __call__(self, outcomes: Outcomes) -> None:
        raise NotImplementedError

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

    def elapsed(self) -> str:
        return clock(time.monotonic() - self.started)


def view(trials: Sequence[Trial], stream: TextIO | None = None) -> View:
    """A picture that refreshes where `stream` (stdout) is a terminal, else plain lines without escape codes."""
    stream = stream or sys.stdout
    if stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return Picture(trials, stream)
    return Lines(trials, stream)


class Lines(View):
    """A line for every change of a trial's state, for every validation, and one for all that run every four seconds."""

    def __init__(self, trials: Sequence[Trial], stream: TextIO) -> None:
        super().__init__(trials, stream)
        self.states: dict[int, str] = {}
        self.validated: dict[int, int | None] = {}

    def __call__(self, outcomes: Outcomes) -> None:
        for outcome in outcomes.values():
            before = self.states.get(outcome.trial.number, "WAITING")
            if outcome.state != before:
                self.states[outcome.trial.number] = outcome.state
                self.say(self.change(outcome, known=before != "WAITING"))
        if self.due(_LINE_S):
            busy = [o.trial for o in outcomes.values() if o.state in ("RUNNING", "STOPPING")]
            running = {trial.number: trial.progress() for trial in busy}
            for number, progress in running.items():
                self.validation(outcomes[number].trial, progress)
            if running:
                for line in self.overview(outcomes, running):
                    self.say(line)

    def say(self, text: str) -> None:
        print(f"[{self.elapsed():>6}] {text}", file=self.stream, flush=True)

    def change(self, outcome: Outcome, known: bool) -> str:
        trial = f"trial {outcome.trial.name}"
        if self.labels[outcome.trial.number]:
            trial += f" {self.labels[outcome.trial.number]}"
        took = f" after {clock(outcome.seconds)}" if outcome.seconds is not None else ""
        if outcome.state == "RUNNING":
            return f"{trial} started, log {outcome.log}"
        if outcome.state == "DONE" and not known:
            return f"{trial} was done before"
        if outcome.state in ("FAILED", "CANCELLED"):
            return f"{trial} {outcome.state}{took}: {outcome.error}"
        return f"{trial} {outcome.state.lower()}{took}" + (f" ({outcome.error})" if outcome.error else "")

    def validation(self, trial: Trial, progress: Progress) -> None:
        loss, step = progress.val_loss, progress.val_step
        if loss is not None and self.validated.get(trial.number, -1) != step:
            self.validated[trial.number] = step
            accuracy = f", accuracy {progress.val_accuracy:.3f}" if progress.val_accuracy is not None else ""
            self.say(f"trial {trial.name} step {step}: validation loss {loss:.4f}{accuracy}")

    def overview(self, outcomes: Outcomes, running: dict[int, Progress]) -> list[str]:
        """All running trials, in lines of 80 columns; more than three lines become one of counts."""
        room = WIDTH - len("[ 00:00] ")
        etas = [progress.eta for progress in running.values()]
        left = [f"{clock(max(eta for eta in etas if eta is not None))} left"] if etas and None not in etas else []
        lines = _pack([cell(number, progress) for number, progress in running.items()] + left, room)
        if len(lines) <= 3:
            return lines
        steps = [progress.step for progress in running.values()]
        return [f"steps {min(steps)} to {max(steps)}; {counts(outcomes)}"]


def cell(number: int, progress: Progress) -> str:
    """One trial in some 30 characters: `#0 13/24 loss 0.612 acc 0.75`."""
    if progress.phase != "training" or not progress.step:
        return f"#{number} {doing(progress)}"[:_CELL]
    total = f"/{progress.max_steps}" if progress.max_steps else ""
    parts = [f"#{number} {progress.step}{total}"]
    parts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    parts += [f"acc {progress.accuracy:.2f}"] if progress.accuracy is not None else []
    parts += [f"silent {clock(progress.silent)}"] if progress.silent and progress.silent > _SILENT_S else []
    return " ".join(parts)


def doing(progress: Progress) -> str:
    """The phase, how long it has taken so far, how far it is: `validating 12 s, 16/64 pairs`."""
    if not progress.phase:
        return "starting"
    since = f" {clock(progress.in_phase)}" if progress.in_phase is not None and progress.phase != "done" else ""
    silent = progress.silent if progress.silent and progress.silent > _SILENT_S else None
    if silent and progress.phase != "done":
        return f"{progress.phase}, silent {clock(silent)}"
    detail = f", {progress.detail}" if progress.detail and progress.phase != "training" else ""
    return f"{progress.phase}{since}{detail}"


def counts(outcomes: Outcomes) -> str:
    """`2 running, 1 waiting, 3 done`."""
    found: Counter[str] = Counter(outcome.state for outcome in outcomes.values())
    order = ("RUNNING", "STOPPING", "WAITING", "DONE", "FAILED", "CANCELLED")
    return ", ".join(f"{found[state]} {state.lower()}" for state in order if found[state])


def _pack(cells: list[str], room: int) -> list[str]:
    lines: list[str] = []
    for text in cells:
        if lines and len(lines[-1]) + len(text) + 3 <= room:
            lines[-1] += f" | {text}"
        else:
            lines.append(text)
    return lines


class Picture(View):
    """A table of the trials, drawn anew twice a second; as many rows as the terminal has room for."""

    def __init__(self, trials: Sequence[Trial], stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(trials, stream)
        self.console = Console(file=stream)  # honours NO_COLOR
        # Drawn from the caller's loop: a thread of rich's own would run beside the starting of processes.
        self.live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
        self.outcomes: Outcomes = {}

    def __enter__(self) -> Picture:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.outcomes:
            self.live.update(self.draw(self.outcomes), refresh=True)
        self.live.stop()

    def __call__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        if self.due(_LIVE_S):
            self.live.update(self.draw(outcomes), refresh=True)

    def draw(self, outcomes: Outcomes) -> Group:
        """The table, what failed and why, and a line of counts."""
        from rich.console import Group
        from rich.text import Text

        failed = [o for o in outcomes.values() if o.state == "FAILED"]
        errors = [Text(f"trial {o.trial.name} FAILED: {o.error}", "red", overflow="fold") for o in failed[-3:]]
        room = max(3, self.console.size.height - 4 - 2 * len(errors))
        rows = sorted(outcomes.values(), key=_attention)[:room]
        rest = len(outcomes) - len(rows)
        more = f", {rest} of them not shown" if rest else ""
        foot = Text(f"{self.elapsed()} | {counts(outcomes)}{more}", "dim")
        return Group(self.table(sorted(rows, key=lambda o: o.trial.number)), *errors, foot)

    def table(self, rows: Sequence[Outcome]) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("#", justify="right", no_wrap=True)
        plain = not any(self.labels.values())  # 80 columns hold other overrides only if something else is cut short
        bar = 12 if plain else 6
        table.add_column("beta", no_wrap=True, max_width=24 if plain else 20, overflow="ellipsis")
        table.add_column("doing", no_wrap=True, max_width=22 if plain else 12, overflow="ellipsis")
        table.add_column("", width=bar)
        for name in ("step", "loss", "acc", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for outcome in rows:
            state, number = outcome.state, outcome.trial.number
            started = state in ("RUNNING", "STOPPING", "DONE", "FAILED", "CANCELLED") and outcome.error != "not started"
            progress = outcome.trial.progress() if started else Progress()
            beta = f"{outcome.trial.beta:g}" if outcome.trial.beta is not None else ""
            doing_now = doing(progress) if state == "RUNNING" else state if state == "FAILED" else state.lower()
            steps = progress.max_steps
            table.add_row(
                str(number),
                " ".join(filter(None, (beta, self.labels[number]))),
                Text(doing_now, _COLOURS.get(state, "")),
                ProgressBar(total=steps or 1, completed=progress.step if steps else 0, width=bar) if started else "",
                f"{progress.step}/{steps}" if steps else "",
                _figure(progress.loss, ".4f"),
                _figure(progress.accuracy, ".2f"),
                clock(progress.eta) if state == "RUNNING" and progress.eta is not None else "",
            )
        return table


def _attention(outcome: Outcome) -> int:
    """What is shown first where there is no room for all."""
    return ("RUNNING", "STOPPING", "FAILED", "DONE", "CANCELLED", "WAITING").index(outcome.state)


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
