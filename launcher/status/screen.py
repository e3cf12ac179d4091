"""The full-screen view of a sweep on a terminal, and its keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.findings import LauncherError
from launcher.status.keyboard import line_mode, read_key, single_keys
from launcher.status.losses import Losses
from launcher.status.rows import COLOURS, rows_table
from launcher.status.trial_state import ENDED_BADLY, LIVE, Look, TrialState, counts_text
from launcher.status.watcher import Watcher
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial, labels
from launcher.terminal import cut, printable
from launcher.units import clock

_KEYS = "up/down choose | l log | c cancel | r retry | q quit"
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
    """The view, as wide as the console. `selected`: index of the row that keys act on; `height`: lines at most."""
    width = console.width
    height = height or console.height
    room = max(1, height - 6)
    first = max(0, min(selected - room // 2, len(look.trials) - room))
    rows = look.trials[first : first + room]
    chosen = look.trials[selected] if look.trials else None
    note = f"{chosen.trial.name} {chosen.state.lower()}: {chosen.remark or _where(chosen)}" if chosen else ""
    hidden = f", rows {first + 1} to {first + len(rows)} of {len(look.trials)}" if len(rows) < len(look.trials) else ""
    return Group(
        Text(printable(_title(look, width)), "bold", no_wrap=True),
        Text(
            cut(printable(_freshness(look, age) + hidden), width),
            "magenta" if look.answers.troubles else "dim",
            no_wrap=True,
        ),
        rows_table(rows, labels([state.trial for state in look.trials]), console, losses, selected - first),
        Text(cut(printable(note), width), COLOURS.get(chosen.state, "") if chosen else "", no_wrap=True),
        Text(cut(message or _KEYS, width), "bold" if message else "dim", no_wrap=True),
    )


def _title(look: Look, width: int) -> str:
    counts = counts_text(look.trials)
    return f"{cut(look.sweep.shown, max(20, width - len(counts) - 3), middle=True)} | {counts}"


def _freshness(look: Look, age: float) -> str:
    answered = bool(look.answers.queue or look.answers.account)
    if look.answers.troubles:
        old = f"Slurm's last answer is {clock(age)} old; " if answered else ""
        return f"{time.strftime('%H:%M:%S')} {old}{look.answers.troubles[0]}"
    return f"{time.strftime('%H:%M:%S')}" + (f" Slurm asked {clock(age)} ago" if answered and age > 1 else "")


def _where(state: TrialState) -> str:
    parts = [f"on {state.nodes}"] if state.nodes else []
    if state.elapsed is not None:
        limit = f" of {clock(state.limit)}" if state.limit and state.limit < 1e9 else ""
        parts.append(f"for {clock(state.elapsed)}{limit}")
    parts += [f"restarted {state.restarts} times"] if state.restarts else []
    return " ".join(parts)


# -- on a terminal -----------------------------------------------------------------------------------------------------


class TrialActions(Protocol):
    """What the keys do to a trial. Each method returns a message, and raises LauncherError or OSError."""

    def cancel(self, sweep: Sweep, trial: Trial) -> str: ...

    def retry(self, sweep: Sweep, trial: Trial) -> str: ...


class Screen:
    """Draws the view until q is pressed. Needs a terminal on stdin and stdout."""

    def __init__(self, sweep: Sweep, actions: TrialActions) -> None:
        self.actions = actions
        self.watcher = Watcher(sweep)
        self.losses = Losses()
        self.console = Console(highlight=False)
        self.selected = 0
        self.message = ""
        self.pending: tuple[str, TrialState] | None = None
        """The action that waits for confirmation: cancel or retry, and which trial."""

    def run(self) -> int:
        """Draw until q is pressed; returns the exit code of `status`."""
        self.console.print("asking Slurm ...", end="\r")
        look = self.watcher.first()
        with single_keys(), self._live() as live:
            pause = 1.0
            drawn = 0.0
            while True:
                key = read_key(_KEY_S)
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
                    pause = max(1.0, 5 * (drawn - began))  # a thousand trials on a slow disk: look less often

    def _live(self) -> Live:
        return Live(console=self.console, screen=True, auto_refresh=False)

    def picture(self, look: Look) -> RenderableType:
        message = self.message
        if not message and not set(look.counts) & LIVE:
            message = f"all trials have ended | {_KEYS}"
        return draw(look, self.losses, self.console, age=self.watcher.age, selected=self.selected, message=message)

    def press(self, key: str, look: Look, live: Live) -> None:
        """Act on a key; the last line shows what it did."""
        self.message = ""
        if self.pending:
            what, state = self.pending
            self.pending = None
            self.message = self._act(what, state) if key in ("y", "Y") else f"{what}: not done"
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

    def _act(self, what: str, state: TrialState) -> str:
        action = self.actions.cancel if what == "cancel" else self.actions.retry
        try:
            done = action(Sweep.load(self.watcher.sweep.folder), state.trial)
        except (LauncherError, OSError) as error:
            return f"{what}: {printable(str(error))}"
        self.watcher.ask_soon()
        return f"trial {state.trial.name}: {done}"

    def _log(self, state: TrialState, live: Live) -> str:
        """Open the pager: for a failed trial with the output of `logs`, else with the log itself, from its end."""
        if not state.log:
            return f"trial {state.trial.name} has printed nothing yet"
        pager = shutil.which(os.environ.get("PAGER", "")) or shutil.which("less") or shutil.which("more")
        if pager is None:
            return f"no pager found (set PAGER); the log is {state.log}"
        live.stop()
        try:
            with line_mode():
                if state.state in ENDED_BADLY:
                    command = [sys.executable, "-m", "launcher", "logs", str(state.trial.number)]
                    logs = subprocess.run([*command, str(self.watcher.sweep.folder)], stdout=subprocess.PIPE)
                    subprocess.run([pager], input=logs.stdout)
                else:
                    options = ["-R", "+G"] if os.path.basename(pager) == "less" else []
                    subprocess.run([pager, *options, str(state.log)])
        finally:
            live.start()
        return ""
