"""Observe a sweep: ask Slurm rarely, in the background; read the trials' folders often."""

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
AWAY_S = 300.0  # longest time between two questions while Slurm does not answer
_SETTLE_S = 2.0  # from an action until Slurm's answer shows it


class Watcher:
    """Joins Slurm's newest answers with the folders as they are now.

    Slurm is asked in a thread, because squeue takes 18 s to report that the controller is away. While Slurm does not
    answer, the last answer is kept, with its age, and Slurm is asked less often.
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
        """Ask Slurm, wait for its answer, and join."""
        self._ask_slurm()
        return self.look()

    def look(self) -> Look:
        """Join without waiting for Slurm."""
        self._reload()
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and time.monotonic() >= self._due and self._within_budget():
            self._thread = threading.Thread(target=self._ask_slurm, daemon=True)
            self._thread.start()
        return states.join(self.sweep, self._answers or Answers(time.time(), queue=None))

    def ask_soon(self) -> None:
        """Ask Slurm again as soon as the budget of commands allows: something was done or seen."""
        self._due = min(self._due, time.monotonic() + _SETTLE_S)

    @property
    def age(self) -> float:
        """Seconds since Slurm last answered in full."""
        return time.time() - self._answers.time if self._answers else 0.0

    def _within_budget(self) -> bool:
        while self._commands and time.monotonic() - self._commands[0] > 60:
            self._commands.popleft()
        return len(self._commands) + self._cost <= COMMANDS_A_MINUTE

    def _ask_slurm(self) -> None:
        before = sum(run.count.values())
        asked_at = time.monotonic()
        answers = self._start_held(self._ask(self.sweep))
        self._cost = max(2, sum(run.count.values()) - before)
        self._commands.extend([asked_at] * (sum(run.count.values()) - before))
        old = self._answers
        if answers.troubles and old is not None:
            # The old answers, with their age, are better than none; what sacct reported about an end stays true.
            since = old if answers.queue is None else answers
            account = {**(old.account or {}), **(answers.account or {})} or answers.account
            claimed = {**old.claimed, **answers.claimed}
            answers = replace(
                since, account=account, claimed=claimed, unclaimed=answers.unclaimed, done=answers.done,
                troubles=answers.troubles,
            )  # fmt: skip
        self._every = min(AWAY_S, self._every * 2) if answers.troubles else ASK_S
        self._answers = answers
        self._due = time.monotonic() + self._every

    def _start_held(self, answers: Answers) -> Answers:
        """Release the sweep's requeued trials from Slurm's two-minute hold; a failure becomes one more trouble."""
        if not answers.queue or not self.sweep.own:
            return answers
        try:
            requeued.start_held(answers.queue.values())
        except run.SlurmError as error:
            trouble = f"cannot start requeued trials at once, they wait for two minutes: {error}"
            return replace(answers, troubles=(*answers.troubles, trouble))
        return answers

    def _reload(self) -> None:
        """Reload sweep.json if another command, such as a retry, has changed it."""
        written = (self.sweep.folder / "sweep.json").stat().st_mtime
        if written != self._written:
            if self._written:
                self.sweep = Sweep.load(self.sweep.folder)
                self.ask_soon()
            self._written = written
