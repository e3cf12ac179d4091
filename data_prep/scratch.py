"""A folder beside a file in the making: gone when the making ends, however it ends, or at the next try. Stdlib only."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new hidden folder in that of `target`: on one file system, so that what is made there can be renamed to it.

    What killed processes of this machine left for the same target is removed first. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{target.name}.{socket.gethostname()}."
    for left in target.parent.iterdir():
        pid = left.name.removeprefix(stem).removesuffix(".part")
        if left.name == f"{stem}{pid}.part" and pid.isdecimal() and not alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f"{stem}{os.getpid()}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
