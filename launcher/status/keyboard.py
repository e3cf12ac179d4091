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
    """Read keys one by one, without echo; the terminal's settings are restored afterwards, whatever happens."""
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
    """Restore the terminal's settings while another program uses it."""
    now = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, _before)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, now)


def read_key(seconds: float) -> str:
    """The key that is pressed within `seconds`; an arrow is its escape sequence; "" if none was pressed."""
    try:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
    except InterruptedError:
        return ""
    if not ready:
        return ""
    pressed = os.read(sys.stdin.fileno(), 16).decode(errors="replace")
    return pressed if pressed.startswith("\x1b") else pressed[:1] or "\x04"
