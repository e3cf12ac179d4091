"""Warnings that the end is near: Slurm's USR2 before the time limit, SIGTERM of a preemption. Standard library only.

`listen` is called with a rank's first lines, long before torch is there. While there is something to save, a warning is
kept for the trainer, which asks after every step (launcher.train.timer). While there is nothing (imports, loading,
evaluation) the rank leaves by itself, with exit code 0, and tells the others by a note in the trial's folder, since
Slurm may warn only some of them.
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
"""Seconds that a rank which leaves gives the others to see its note, before its end breaks their connections."""
_LOOK = 1.0  # seconds between two looks for such a note

_listener: Listener | None = None


def listen(trial_dir: Path, signals: Iterable[int]) -> Listener:
    """Have `signals` heard from here on; main thread only. A second call gives what the first one made."""
    global _listener
    if _listener is None:
        _listener = Listener(Path(trial_dir), tuple(signals))
    return _listener


def listener() -> Listener | None:
    """What listen() made; None where nobody listens."""
    return _listener


def note_path(trial_dir: Path) -> Path | None:
    """<trial>/log/<attempt>_stopped.json; None where TRIAL_ATTEMPT does not name this start of the trial."""
    attempt = os.environ.get("TRIAL_ATTEMPT")
    return trial_dir / "log" / f"{attempt}_stopped.json" if attempt else None


def write_note(trial_dir: Path, reason: str, step: int) -> None:
    """Note for whoever looks after the trial that it was stopped, with its last saved step, and is to go on."""
    path = note_path(trial_dir)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        whole_file.write_json(path, {"time": time.time(), "reason": reason, "step": step})


def read_note(trial_dir: Path) -> dict[str, object] | None:
    """The note of this start; None where there is none, or the start has no name."""
    path = note_path(trial_dir)
    try:
        note: dict[str, object] | None = json.loads(path.read_bytes()) if path else None
    except FileNotFoundError:
        return None
    return note


class Listener:
    """Hears signals even while the main thread waits in a collective: a thread reads them from a pipe."""

    def __init__(self, trial_dir: Path, signals: tuple[int, ...]) -> None:
        self.trial_dir = trial_dir
        self.signals = signals
        self.heard = 0
        """The first signal's number; 0 while there was none."""
        self._leaves = True  # whether a warning ends this rank at once
        self._leaving = False
        self._lock = threading.Lock()
        self._pipe, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: None)  # any handler: what tells of the signal is the pipe
        threading.Thread(target=self._run, name="warnings", daemon=True).start()

    def keep(self) -> None:
        """From here on there is something to save: a warning is kept in `heard`. Never returns if this rank leaves."""
        with self._lock:
            self._leaves = self._leaving
        self._wait_for_the_end()

    def leave(self) -> None:
        """From here on there is nothing to save: a warning, an earlier one too, ends this rank with exit code 0."""
        with self._lock:
            self._leaves, self._leaving = True, self.heard > 0
        self._wait_for_the_end()

    def ignore(self) -> None:
        """From here on the trial is done, or its stop is noted: nothing is left to do about a warning."""
        self.keep()
        self.heard = -1

    def _wait_for_the_end(self) -> None:
        while self._leaving:
            time.sleep(LINGER)

    def _run(self) -> None:
        while True:
            if select.select([self._pipe], [], [], _LOOK)[0]:
                number = os.read(self._pipe, 1)[0]  # of any signal with a handler in Python, as DataLoader's SIGCHLD
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
                finally:  # the main thread may be waiting for ranks that never come
                    os._exit(code)

    def _say(self, reason: str) -> None:
        """Leave word of it, and give the other ranks the time to read it."""
        saved = checkpoints.last_good(self.trial_dir, hashes=False)
        step = saved.step if saved else 0
        if self.heard:
            write_note(self.trial_dir, reason, step)
        time.sleep(LINGER)
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            metrics.append_phase(self.trial_dir / "metrics.jsonl", "stopped", f"{reason}, with nothing to save")
        print(f"stopped: {reason}, with nothing to save; goes on from step {step}", flush=True)
