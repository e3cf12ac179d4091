"""What may be printed on a terminal, and what the terminal can show."""

from __future__ import annotations

import io
import os
import re
import sys
from typing import TextIO

from launcher.findings import Finding, Refused

# Escape sequences start with a control character of C0 or C1; bidirectional controls reorder the text around them.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text in one line with control characters replaced: overrides, names and errors may contain anything."""
    if not text or (text.isascii() and text.isalnum()):
        return text  # most cells of a table
    return printable_line(" ".join(text.split()))


def printable_line(line: str) -> str:
    """A line with its indentation, with control characters replaced."""
    return _CONTROLS.sub("?", line.expandtabs())


def cut(text: str, width: int, middle: bool = False) -> str:
    """Shorten to `width` characters, with … for the part left out, at the end or in the middle."""
    if len(text) <= width:
        return text
    if middle:
        head = (width - 1) // 3
        return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
    return text[: max(0, width - 1)] + "…"


def can_redraw(stream: TextIO) -> bool:
    """Whether the stream is a terminal on which lines can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def prepare_streams() -> None:
    """Make printing safe: a closed stream (`>&-`) prints nowhere, and unencodable characters are replaced.

    Python has None for a stream that was closed. LANG=C and latin-1 have no "…".
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a test it may be something else
            stream.reconfigure(errors="replace")


def refuse_deleted_folder() -> None:
    """Raises Refused if the current folder was deleted: relative paths then have no meaning."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise Refused([Finding("the current folder", "", "was deleted", "cd to another one")]) from None


def after_broken_pipe() -> int:
    """The exit code if the reader of stdout has closed it, as `| head` does. Keeps the flush at exit from raising."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # 128 + SIGPIPE
