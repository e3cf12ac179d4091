"""Prints progress to stderr: a line at the start of each phase, and one every few seconds while it lasts."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 4.0  # seconds; no phase stays silent for longer than 5


class Progress:
    """Prints `name: phase` lines. `detail` may be set at any time from any thread; the next line ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.detail = ""

    def say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Print `text`; while the block runs, print it every EVERY seconds with the seconds passed and `detail`."""
        self.detail = ""
        self.say(text)
        over, began = threading.Event(), time.monotonic()

        def beat() -> None:
            while not over.wait(EVERY):
                detail = f", {self.detail}" if self.detail else ""
                self.say(f"{text} ({time.monotonic() - began:.0f} s{detail})")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
