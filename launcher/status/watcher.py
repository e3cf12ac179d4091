"""Looking at a sweep again and again: at Slurm seldom, in the background; at the trials' folders often."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from launcher.slurm import requeued, run
from launcher.status import states
from launcher.status.answers import Answers, ask
from launcher.status.trial_state import Look
from launcher.sweep.folder import Sweep

ASK_S = 30.0  # between two questions to Slurm, each of at most two commands
COMMANDS_A_MINUTE = 4
AWAY_S = 300.0  # longest wait between two questions while Slurm does not answer
_SETTLE_S = 2.0  # after an action, until Slurm's answer shows it


class Watcher:
    """The look at a sweep now: the newest answers of Slurm joined with the folders as they are.

    Slurm is asked in a thread, because it takes 18 s to report that its controller is away. While it does not answer,
    the last answer is kept, with its age, and the questions become rarer.
    """

    def __init__(self, sweep: Sweep, ask: Callable[[Sweep], Answers] = ask) -> None:
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
        """A look that does not wait for Slurm."""
        self._reload()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and time.monotonic() >= self._due and self._affordable():
            self._thread = threading.Thread(target=self._question, daemon=True)
            self._thread.start()
        return states.join(self.sweep, self._answers or Answers(time.time(), queue=None))

    def soon(self) -> None:
        """Ask again as soon as the budget of commands allows: something was done, or seen."""
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
        before = sum(run.count.values())
        asked = time.monotonic()
        answers = self._start_held(self._ask(self.sweep))
        self._cost = max(2, sum(run.count.values()) - before)
        self._commands.extend([asked] * (sum(run.count.values()) - before))
        old = self._answers
        if answers.troubles and old is not None:
            # the old answers, with their age, are better than none; what sacct reported about an end stays true
            known = answers.queue is not None
            queue = answers.queue if known else old.queue
            account = {**(old.account or {}), **(answers.account or {})} or answers.account
            claimed = {**old.claimed, **answers.claimed}
            since = answers.time if known else old.time
            answers = replace(answers, time=since, queue=queue, account=account, claimed=claimed)
        self._every = min(AWAY_S, self._every * 2) if answers.troubles else ASK_S
        self._answers = answers
        self._due = time.monotonic() + self._every

    def _start_held(self, answers: Answers) -> Answers:
        """Have the sweep's requeued trials start without Slurm's hold; a failure of that is one more trouble."""
        if not answers.queue or not self.sweep.own:
            return answers
        try:
            requeued.start_held(answers.queue.values())
        except run.SlurmError as error:
            trouble = f"requeued trials wait for two minutes: {error}"
            return replace(answers, troubles=(*answers.troubles, trouble))
        return answers

    def _reload(self) -> None:
        """Read sweep.json anew where another command, such as a retry, has changed it."""
        written = (self.sweep.folder / "sweep.json").stat().st_mtime
        if written != self._written:
            if self._written:
                self.sweep = Sweep.load(self.sweep.folder)
                self.soon()
            self._written = written
