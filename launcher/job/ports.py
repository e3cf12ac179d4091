"""A TCP port for a trial's rank 0, that no other trial on this machine is given. Standard library only."""

from __future__ import annotations

import fcntl
import socket
import tempfile
from pathlib import Path
from typing import IO

#: Below the range from which Linux gives ports to outgoing connections (32768 up), so that none of those takes it
#: between our choice and the moment rank 0 listens; above Lightning's own choice for Slurm jobs (15000 to 24999).
PORTS = range(25000, 32768)


def claim(number: int = 0, ports: range = PORTS) -> tuple[int, IO[str]]:
    """A free port, and the lock file that keeps it ours: two trials on one machine never choose the same.

    The lock is held as long as the file is open; the empty file stays, for others may have it open. Jobs begin their
    search at different ports, by their `number`. Raises OSError where every port is in use.
    """
    for step in range(len(ports)):
        port = ports[(number + step) % len(ports)]
        lock = _lock(Path(tempfile.gettempdir()) / f"launcher-port-{port}.lock")
        if lock is None:
            continue
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                lock.close()
                continue
        return port, lock
    raise OSError(f"every port from {ports.start} to {ports.stop - 1} of {socket.gethostname()} is in use")


def _lock(path: Path) -> IO[str] | None:
    try:
        lock = path.open("a")
    except PermissionError:
        return None  # another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
