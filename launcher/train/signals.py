"""Signals that warn of the job's end: USR2 before Slurm's time limit, SIGTERM at preemption. Standard library only.

A rank calls `listen` first of all, long before it imports torch. While there is something to save, a warning is kept
for the trainer, which checks for one after every step (launcher.train.timer). While there is nothing to save (imports,
loading, evaluation), the rank exits by itself with code 0. It tells the other ranks through a note in the trial's
folder, because Slurm may warn only some of them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from launcher import whole_file
from launcher.sweep import checkpoints, metrics

LINGER = 3.0
"""Seconds that an exiting rank waits, so that the others see its note before its exit breaks their connections."""
_LOOK = 1.0  # seconds between two checks for such a note

_listener: Listener | None = None


def listen(trial_dir: Path, signals: Iterable[int]) -> Listener:
    """Start listening for `signals`; main thread only. A second call returns the listener of the first."""
    global _listener
    if _listener is None:
        _listener = Listener(Path(trial_dir), tuple(signals))
    return _listener


def listener() -> Listener | None:
    """The listener that listen() made; None if it was not called."""
    return _listener


def note_path(trial_dir: Path) -> Path | None:
    """<trial>/log/<TRIAL_ATTEMPT>_stopped.json; None if env TRIAL_ATTEMPT, the name of this start, is not set."""
    attempt = os.environ.get("TRIAL_ATTEMPT")
    return trial_dir / "log" / f"{attempt}_stopped.json" if attempt else None


def write_note(trial_dir: Path, reason: str, step: int) -> None:
    """Record for the job that this trial was stopped and is to be resumed, and its last saved step."""
    path = note_path(trial_dir)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        whole_file.write_json(path, {"time": time.time(), "reason": reason, "step": step})


def read_note(trial_dir: Path) -> dict[str, object] | None:
    """The note of this start; None if there is none, or if TRIAL_ATTEMPT is not set."""
    path = note_path(trial_dir)
    try:
        note: dict[str, object] | None = json.loads(path.read_bytes()) if path else None
    except FileNotFoundError:
        return None
    return note


class Listener:
    """Receives signals even while the main thread waits in a collective: a thread reads them from a pipe."""

    def __init__(self, trial_dir: Path, signals: tuple[int, ...]) -> None:
        self.trial_dir = trial_dir
        self.signals = signals
        self.heard = 0
        """Number of the first signal received; 0 if none was; -1 after ignore()."""
        self._leaves = True  # whether a warning ends this rank at once
        self._leaving = False
        self._lock = threading.Lock()
        self._pipe, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)  # any handler will do: the signal is read from the pipe
        threading.Thread(target=self._run, name="warnings", daemon=True).start()

    def keep(self) -> None:
        """From now on there is work to save: a warning is kept in `heard`. Never returns if the rank is exiting."""
        with self._lock:
            self._leaves = self._leaving
        self._wait_for_the_end()

    def leave(self) -> None:
        """From now on there is nothing to save: a warning, even an earlier one, ends this rank with exit code 0."""
        with self._lock:
            self._leaves, self._leaving = True, self.heard > 0
        self._wait_for_the_end()

    def ignore(self) -> None:
        """From now on warnings are ignored: the trial is done, or its stop has been recorded."""
        self.keep()
        self.heard = -1

    def _wait_for_the_end(self) -> None:
        while self._leaving:
            time.sleep(LINGER)

    def _run(self) -> None:
        while True:
            if select.select([self._pipe], [], [], _LOOK)[0]:
                number = os.read(self._pipe, 1)[0]  # any signal with a Python handler, also DataLoader's SIGCHLD
                if number in self.signals and not self.heard:
                    self.heard = number
                    print(f"signal {signal.Signals(number).name}", flush=True)
            with self._lock:
                other = read_note(self.trial_dir) if self._leaves and not self.heard else None
                self._leaving = self._leaves and (self.heard > 0 or other is not None)
            if self._leaving:
                code = 1
                try:
                    self._say(
                        f"signal {signal.Signals(self.heard).name}" if self.heard else str((other or {})["reason"])
                    )
                    code = 0
                finally:  # exit from here: the main thread may wait for ranks that never come
                    os._exit(code)

    def _say(self, reason: str) -> None:
        """Write the note, and give the other ranks time to read it."""
        saved = checkpoints.last_good(self.trial_dir, hashes=False)
        step = saved.step if saved else 0
        if self.heard:
            write_note(self.trial_dir, reason, step)
        time.sleep(LINGER)
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            metrics.append_phase(self.trial_dir / "metrics.jsonl", "stopped", f"{reason}, with nothing to save")
        print(f"stopped: {reason}, with nothing to save; goes on from step {step}", flush=True)
