"""The live picture of a sweep on a terminal, and its keys."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.findings import Refused
from launcher.slurm.client import SlurmError
from launcher.status import states
from launcher.status.states import ENDED_BADLY, LIVE, Look, TrialState
from launcher.status.table import cut, figure, remark
from launcher.status.watcher import ASCII, BLOCKS, Losses, Watcher, sparkline
from launcher.submit import actions
from launcher.sweep.folder import Sweep, labels
from launcher.units import clock, when

_COLOURS = {"DONE": "green", "FAILED": "red", "UNSUBMITTED": "red", "CANCELLED": "yellow", "STOPPING": "yellow"}
_COLOURS |= {"WAITING": "dim", "UNKNOWN": "magenta"}
_KEYS = "up/down choose | l log | c cancel | r retry | q quit"
_SILENT_S = 120.0  # a running trial that has said nothing for so long is shown as silent
_KEY_S = 0.25
_UP, _DOWN = ("\x1b[A", "\x1bOA", "k"), ("\x1b[B", "\x1bOB", "j")


def draw(
    look: Look,
    losses: Losses,
    console: Console,
    *,
    age: float = 0.0,
    selected: int = 0,
    message: str = "",
    height: int | None = None,
) -> RenderableType:
    """The picture, as wide as the console. `selected`: place of the row that keys act on; `height`: lines at most."""
    width = console.width
    height = height or console.height
    room = max(1, height - 6)
    first = max(0, min(selected - room // 2, len(look.trials) - room))
    rows = look.trials[first : first + room]
    chosen = look.trials[selected] if look.trials else None
    note = f"{chosen.trial.name} {chosen.state.lower()}: {remark(chosen) or _where(chosen)}" if chosen else ""
    hidden = f", rows {first + 1} to {first + len(rows)} of {len(look.trials)}" if len(rows) < len(look.trials) else ""
    return Group(
        Text(_title(look, width), "bold", no_wrap=True),
        Text(cut(_freshness(look, age) + hidden, width), "magenta" if look.answers.troubles else "dim", no_wrap=True),
        _table(rows, look, losses, console, selected - first),
        Text(cut(" ".join(note.split()), width), _COLOURS.get(chosen.state, "") if chosen else "", no_wrap=True),
        Text(cut(message or _KEYS, width), "bold" if message else "dim", no_wrap=True),
    )


def _title(look: Look, width: int) -> str:
    counts = ", ".join(f"{count} {word.lower()}" for word, count in look.counts.items())
    return f"{cut(look.sweep.shown, max(20, width - len(counts) - 3), middle=True)} | {counts}"


def _freshness(look: Look, age: float) -> str:
    asked = bool(look.answers.queue or look.answers.account)
    if look.answers.troubles:
        old = f"Slurm's last answer is {clock(age)} old; " if asked else ""
        return f"{time.strftime('%H:%M:%S')} {old}{look.answers.troubles[0]}"
    return f"{time.strftime('%H:%M:%S')}" + (f" Slurm asked {clock(age)} ago" if asked and age > 1 else "")


def _where(state: TrialState) -> str:
    parts = [f"on {state.nodes}"] if state.nodes else []
    if state.elapsed is not None:
        limit = f" of {clock(state.limit)}" if state.limit and state.limit < 1e9 else ""
        parts.append(f"for {clock(state.elapsed)}{limit}")
    parts += [f"restarted {state.restarts} times"] if state.restarts else []
    return " ".join(parts)


def _table(rows: Sequence[TrialState], look: Look, losses: Losses, console: Console, selected: int) -> Table:
    names = labels([state.trial for state in look.trials])
    wide = console.width >= 100
    spark = 16 if wide else 8
    levels = BLOCKS if console.encoding.lower().startswith("utf") else ASCII
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", width=1)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("beta", no_wrap=True, max_width=30 if wide else 14, overflow="ellipsis")
    table.add_column("state", no_wrap=True, max_width=24 if wide else 14, overflow="ellipsis")
    table.add_column("", width=24 if wide else 8)
    for name in ("step", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", width=spark, no_wrap=True)
    for name in ("acc", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for place, state in enumerate(rows):
        progress = state.progress
        beta = f"{state.trial.beta:g}" if state.trial.beta is not None else ""
        bar = ProgressBar(total=progress.max_steps or 1, completed=progress.step, width=24 if wide else 8)
        table.add_row(
            ">" if place == selected else "",
            str(state.trial.number),
            " ".join(filter(None, (beta, names[state.trial.number]))),
            Text(_doing(state), _COLOURS.get(state.state, "")),
            bar if progress.max_steps else "",
            f"{progress.step}/{progress.max_steps}" if progress.max_steps else "",
            figure(progress.loss, ".4f"),
            sparkline(losses.of(state.trial.folder), spark, levels) if state.log else "",
            figure(progress.accuracy, ".2f"),
            _left(state),
            style="reverse" if place == selected and console.color_system else "",
        )
    return table


def _doing(state: TrialState) -> str:
    if state.state == "WAITING":
        return f"waits, {state.slurm_reason}" if state.slurm_reason not in ("", "None") else "waits"
    if state.state != "RUNNING":
        return state.state if state.state == "FAILED" else state.state.lower()
    if state.beat is not None and state.beat > _SILENT_S:
        return f"silent {clock(state.beat)}"
    return state.progress.phase or "starts"


def _left(state: TrialState) -> str:
    if state.state == "WAITING" and state.expected:
        return f"~{when(state.expected)}"
    eta = state.progress.eta
    return clock(eta) if state.state == "RUNNING" and eta is not None else ""


# -- on a terminal -----------------------------------------------------------------------------------------------------


class Screen:
    """Draws until q is pressed. Needs a terminal on stdin and stdout."""

    def __init__(self, sweep: Sweep) -> None:
        self.watcher = Watcher(sweep)
        self.losses = Losses()
        self.console = Console(highlight=False)
        self.selected = 0
        self.message = ""
        self.pending: tuple[str, TrialState] | None = None
        """What waits for a yes: cancel or retry, and which trial."""

    def run(self) -> int:
        """Returns the exit code of `status`."""
        self.console.print("asking Slurm ...", end="\r")
        look = self.watcher.first()
        with _keys(), self._live() as live:
            pause = 1.0
            drawn = 0.0
            while True:
                key = _key(_KEY_S)
                if key in ("q", "Q", "\x03", "\x04"):
                    return look.exit_code
                if key:
                    self.press(key, look, live)
                if key or time.monotonic() - drawn >= pause:
                    began = time.monotonic()
                    look = self.watcher.look()
                    self.selected = min(self.selected, max(0, len(look.trials) - 1))
                    live.update(self.picture(look), refresh=True)
                    drawn = time.monotonic()
                    pause = max(1.0, 5 * (drawn - began))  # a thousand trials on a slow disk: look more seldom

    def _live(self) -> Live:
        return Live(console=self.console, screen=True, auto_refresh=False)

    def picture(self, look: Look) -> RenderableType:
        message = self.message
        if not message and not set(look.counts) & LIVE:
            message = f"all trials have ended | {_KEYS}"
        return draw(look, self.losses, self.console, age=self.watcher.age, selected=self.selected, message=message)

    def press(self, key: str, look: Look, live: Live) -> None:
        """Act on a key; what it did is said in the last line."""
        self.message = ""
        if self.pending:
            what, state = self.pending
            self.pending = None
            self.message = self._do(what, state) if key in ("y", "Y") else f"{what}: not done"
            return
        state = look.trials[self.selected]
        if key in _UP or key in _DOWN:
            self.selected = max(0, min(len(look.trials) - 1, self.selected + (1 if key in _DOWN else -1)))
        elif key == "l":
            self.message = self._log(state, live)
        elif key == "c":
            self._propose("cancel", state, state.state in LIVE)
        elif key == "r":
            self._propose("retry", state, state.state in ENDED_BADLY)

    def _propose(self, what: str, state: TrialState, fits: bool) -> None:
        if not fits:
            self.message = f"trial {state.trial.name} is {state.state.lower()}: nothing to {what}"
            return
        self.pending = what, state
        self.message = f"{what} trial {state.trial.name}? y yes, any other key no"

    def _do(self, what: str, state: TrialState) -> str:
        sweep = Sweep.load(self.watcher.sweep.folder)
        try:
            with actions.alone(sweep):
                look = states.look(sweep)  # it may have changed since it was drawn
                if what == "cancel":
                    chosen = actions.to_cancel(look, [state.trial]).chosen
                    done = actions.cancel(look, chosen) if chosen else ["it has ended meanwhile"]
                elif actions.of_local(sweep, state.trial):
                    done = [f"it runs on this machine: python -m launcher retry {state.trial.number} in a shell"]
                elif actions.to_retry(look, [state.trial], only_failed=False).chosen:
                    done = [f"submitted as array {', '.join(actions.submit_again(sweep, [state.trial]))}"]
                else:
                    done = ["it waits, runs or is done meanwhile"]
        except (SlurmError, Refused, OSError) as error:
            return f"{what}: {' '.join(str(error).split())}"
        self.watcher.soon()
        return f"trial {state.trial.name}: {'; '.join(done)}"

    def _log(self, state: TrialState, live: Live) -> str:
        """In the pager; of a failed trial what `logs` says, else the log itself, from its end."""
        if not state.log:
            return f"trial {state.trial.name} has printed nothing yet"
        pager = shutil.which(os.environ.get("PAGER", "")) or shutil.which("less") or shutil.which("more")
        if pager is None:
            return f"no pager found (set PAGER); the log is {state.log}"
        live.stop()
        try:
            with _cooked():
                if state.state in ENDED_BADLY:
                    command = [sys.executable, "-m", "launcher", "logs", str(state.trial.number)]
                    told = subprocess.run([*command, str(self.watcher.sweep.folder)], stdout=subprocess.PIPE)
                    subprocess.run([pager], input=told.stdout)
                else:
                    options = ["-R", "+G"] if os.path.basename(pager) == "less" else []
                    subprocess.run([pager, *options, str(state.log)])
        finally:
            live.start()
        return ""


@contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and are not shown; the terminal is as it was afterwards, whatever happens."""
    global _before
    _before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _before)


_before: list[Any] = []


@contextmanager
def _cooked() -> Iterator[None]:
    """For another program on this terminal."""
    now = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _before)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, now)


def _key(seconds: float) -> str:
    """The key that is pressed within so long, an arrow's as its escape sequence; "" for none."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
    except InterruptedError:
        return ""
    if not ready:
        return ""
    pressed = os.read(sys.stdin.fileno(), 16).decode(errors="replace")
    return pressed if pressed.startswith("\x1b") else pressed[:1] or "\x04"
