"""Looking at a sweep again and again: Slurm seldom, in the background; the trials' folders often."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from launcher.slurm import client
from launcher.status import states
from launcher.status.progress import cell
from launcher.status.states import LIVE, Answers, Look
from launcher.status.table import remark
from launcher.submit import actions
from launcher.sweep.folder import Sweep, labels
from launcher.units import clock, when

ASK_S = 30.0  # between two questions to Slurm, each of at most two commands
COMMANDS_A_MINUTE = 4
AWAY_S = 300.0  # longest wait between two questions while Slurm does not answer
_SETTLE_S = 2.0  # after an action, until Slurm's answer shows it
_PACKED = 80


class Watcher:
    """The look at a sweep now: the newest answers of Slurm joined with the folders as they are.

    Slurm is asked in a thread of its own, for a controller that is away takes 18 s to say so. While it does not answer,
    what it said last is kept, with its age, and the questions become rarer.
    """

    def __init__(self, sweep: Sweep, ask: Callable[[Sweep], Answers] = states.ask) -> None:
        self.sweep = sweep
        self._ask = ask
        self._answers: Answers | None = None
        self._thread: threading.Thread | None = None
        self._every = ASK_S
        self._due = 0.0
        self._commands: deque[float] = deque()
        self._written = 0.0
        self._cost = 2

    def first(self) -> Look:
        """The first look, which waits for Slurm's answer."""
        self._question()
        return self.look()

    def look(self) -> Look:
        """Never waits for Slurm."""
        self._reload()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and time.monotonic() >= self._due and self._affordable():
            self._thread = threading.Thread(target=self._question, daemon=True)
            self._thread.start()
        return states.join(self.sweep, self._answers or Answers(time.time(), queue=None))

    def soon(self) -> None:
        """Ask again as soon as the budget allows: something was done, or seen."""
        self._due = min(self._due, time.monotonic() + _SETTLE_S)

    @property
    def age(self) -> float:
        """Seconds since Slurm last answered in full."""
        return time.time() - self._answers.time if self._answers else 0.0

    def _affordable(self) -> bool:
        while self._commands and time.monotonic() - self._commands[0] > 60:
            self._commands.popleft()
        return len(self._commands) + self._cost <= COMMANDS_A_MINUTE

    def _question(self) -> None:
        before = sum(client.count.values())
        asked = time.monotonic()
        answers = self._ask(self.sweep)
        if answers.queue:
            actions.hasten(answers.queue.values())
        self._cost = max(2, sum(client.count.values()) - before)
        self._commands.extend([asked] * (sum(client.count.values()) - before))
        old = self._answers
        if answers.troubles and old is not None:
            # the old word, with its age, tells more than none; what sacct said of an end stays true
            known = answers.queue is not None
            queue = answers.queue if known else old.queue
            account = {**(old.account or {}), **(answers.account or {})} or answers.account
            claimed = {**old.claimed, **answers.claimed}
            since = answers.time if known else old.time
            answers = replace(answers, time=since, queue=queue, account=account, claimed=claimed)
        self._every = min(AWAY_S, self._every * 2) if answers.troubles else ASK_S
        self._answers = answers
        self._due = time.monotonic() + self._every

    def _reload(self) -> None:
        """sweep.json anew where another command, a retry say, has changed it."""
        written = (self.sweep.folder / "sweep.json").stat().st_mtime
        if written != self._written:
            if self._written:
                self.sweep = Sweep.load(self.sweep.folder)
                self.soon()
            self._written = written


# -- the loss over the steps -------------------------------------------------------------------------------------------


@dataclass
class _History:
    position: int = 0
    losses: dict[int, float] = field(default_factory=dict)


class Losses:
    """The training losses of trials by step. Reads only what was appended since the last call."""

    def __init__(self) -> None:
        self._histories: dict[Path, _History] = {}

    def of(self, folder: Path) -> list[float]:
        """In the order of the steps; those of a run that went on from a checkpoint replace the ones before."""
        path = folder / "metrics.jsonl"
        history = self._histories.setdefault(path, _History())
        try:
            with path.open("rb") as stream:
                stream.seek(history.position)
                new = stream.read()
        except FileNotFoundError:
            return []
        whole, _, _ = new.rpartition(b"\n")  # a line that is being written is read when it is whole
        history.position += len(whole) + 1 if whole else 0
        for raw in whole.splitlines():
            if b'"train/loss"' not in raw:
                continue
            try:
                line = json.loads(raw)
                loss = line["train/loss"]
                history.losses[int(line["step"])] = math.nan if loss is None else float(loss)
            except (ValueError, KeyError, TypeError):
                continue  # cut in two by a crash
        return [history.losses[step] for step in sorted(history.losses)]


BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """The values in so many characters, each the mean of its share; `x` where one is not finite."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in zip(edges, edges[1:], strict=False)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

    def level(mean: float) -> str:
        if not math.isfinite(mean):
            return "x"
        return levels[round((mean - low) / span * (len(levels) - 1)) if span else 0]

    return "".join(map(level, means))


# -- without a terminal ------------------------------------------------------------------------------------------------


class Lines:
    """A line for every change, none of them with escape codes; every minute one for those that run."""

    every = 60.0

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.before: dict[int, tuple[str, ...]] = {}
        self.validated: dict[int, int | None] = {}
        self.troubles: tuple[str, ...] = ()
        self.told = time.monotonic()

    def __call__(self, look: Look, age: float) -> None:
        names = labels([state.trial for state in look.trials])
        if look.answers.troubles != self.troubles:
            self.troubles = look.answers.troubles
            for trouble in self.troubles or ("Slurm answers again",):
                self.say(f"! {trouble}")
        first = not self.before
        for state in look.trials:
            number, progress = state.trial.number, state.progress
            now = (state.state, state.reason, state.error, str(state.restarts))
            if self.before.get(number) != now and not (first and state.state == "WAITING"):
                name = " ".join(filter(None, (state.trial.name, names[number])))
                soon = f"; expected {when(state.expected)}" if state.expected else ""
                where = f" on {state.nodes}" if state.state == "RUNNING" and state.nodes else ""
                why = f": {remark(state)}" if remark(state) else ""
                self.say(f"trial {name} {state.state.lower()}{where}{why}{soon}")
            self.before[number] = now
            if progress.val_loss is not None and self.validated.get(number, -1) != progress.val_step:
                self.validated[number] = progress.val_step
                self.say(f"trial {state.trial.name} step {progress.val_step}: validation loss {progress.val_loss:.4f}")
        if first:
            self.say(", ".join(f"{count} {word.lower()}" for word, count in look.counts.items()))
        if time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            self.overview(look, age)

    def overview(self, look: Look, age: float) -> None:
        if age > 2 * ASK_S and set(look.counts) & LIVE and self.troubles:
            self.say(f"! Slurm's last answer is {clock(age)} old")
        cells = [cell(state.trial.number, state.progress) for state in look.trials if state.state == "RUNNING"]
        line = ""
        for text in cells[:9]:
            if line and len(line) + len(text) + 3 > _PACKED - 9:
                self.say(line)
                line = ""
            line += f" | {text}" if line else text
        if line:
            more = len(cells) - 9
            self.say(f"{line} | and {more} more" if more > 0 else line)

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {' '.join(text.split())}", file=self.stream, flush=True)
