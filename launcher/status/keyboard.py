"""Single keys from a terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def single_keys() -> Iterator[None]:
    """Have keys come one by one, unshown; afterwards the terminal is as it was before, whatever happens."""
    global _before
    _before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _before)


_before: list[Any] = []


@contextmanager
def line_mode() -> Iterator[None]:
    """The terminal as it was before, for another program that runs on it."""
    now = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _before)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, now)


def read_key(seconds: float) -> str:
    """The key that is pressed within so many seconds, an arrow as its escape sequence; "" for none."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
    except InterruptedError:
        return ""
    if not ready:
        return ""
    pressed = os.read(sys.stdin.fileno(), 16).decode(errors="replace")
    return pressed if pressed.startswith("\x1b") else pressed[:1] or "\x04"
