"""What may be printed on a terminal, and what the terminal can show."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

# Escape sequences start with a control character, of C0 or of C1; the bidirectional controls reorder what is read.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text in one line, each control character replaced: overrides, names and errors may hold anything."""
    return printable_line(" ".join(text.split()))


def printable_line(line: str) -> str:
    """A line with its indentation, each control character replaced."""
    return _CONTROLS.sub("?", line.expandtabs())


def cut(text: str, width: int, middle: bool = False) -> str:
    """At most `width` characters, with … for what is left out, at the end or in the middle."""
    if len(text) <= width:
        return text
    if middle:
        head = (width - 1) // 3
        return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
    return text[: max(0, width - 1)] + "…"


def can_redraw(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which lines can be drawn anew."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def never_refuse_a_letter() -> None:
    """Have stdout and stderr replace letters that they cannot encode: LANG=C and latin-1 know no "…"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a test it may be something else
            stream.reconfigure(errors="replace")


def after_broken_pipe() -> int:
    """The exit code where the reader of stdout has left, as `| head` does; the flush at exit then raises no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # 128 + SIGPIPE
