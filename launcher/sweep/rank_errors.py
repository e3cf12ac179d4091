"""The note that a rank writes about the error that ended it: <trial>/log/<start>_<rank>_error.json

One failed rank makes others fail by breaking their connections: the earliest note shows which failed first.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from launcher import whole_file
from launcher.findings import Refused

_MOST_LINES = 40  # of a traceback


@dataclass(frozen=True)
class RankError:
    """What ended a rank."""

    time: float
    """Seconds since 1970."""
    type: str
    """The exception's name; "" for a config that was refused."""
    message: str
    traceback: tuple[str, ...]
    node: str
    """The node that the rank ran on; "" if not recorded."""

    @property
    def text(self) -> str:
        return ": ".join(part for part in (self.type, self.message) if part)


def path(log_folder: Path, start: str, rank: int | str) -> Path:
    return log_folder / f"{start}_{rank}_error.json"


def write(note: Path, error: BaseException, **more: str) -> None:
    """Write the note about the exception that ends this rank, with the current time."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = "" if isinstance(error, Refused) else type(error).__name__
    write_text(note, kind, text, "".join(traceback.format_exception(error)), **more)


def write_text(note: Path, kind: str, message: str, trace: str = "", **more: str) -> None:
    content = {"time": time.time(), "type": kind, "message": message, "traceback": trace, **more}
    whole_file.write_json(note, content)


def read(log_folder: Path, start: str, rank: int | str) -> RankError | None:
    """The note of a rank; None if it wrote none."""
    note = whole_file.read_json(path(log_folder, start, rank))
    try:
        lines = tuple(str(note.get("traceback", "")).rstrip().splitlines()[-_MOST_LINES:])
        node = str(note.get("node") or "")
        return RankError(float(note["time"]), str(note["type"]), str(note["message"]), lines, node)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
