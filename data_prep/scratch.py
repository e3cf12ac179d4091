"""A temporary folder beside the file being made. It is removed at the end, or, after a kill, by the next call.

Stdlib only.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Yields a new hidden folder beside `target`, on the same file system, so its content can be renamed to `target`.

    First removes folders that killed processes on this machine left for the same target. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = f".{target.name}.{socket.gethostname()}."
    for left in target.parent.iterdir():
        pid = left.name.removeprefix(stem).removesuffix(".part")
        if left.name == f"{stem}{pid}.part" and pid.isdecimal() and abandoned(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f"{stem}{os.getpid()}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def abandoned(pid: int) -> bool:
    """Whether a folder that the process `pid` of this machine made is left over: this process has just begun.

    In a container every run may have the same id.
    """
    return pid == os.getpid() or not alive(pid)


def alive(pid: int) -> bool:
    """Whether process `pid` is running on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
