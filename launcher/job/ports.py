"""Chooses a TCP port for a trial's rank 0 that no other trial on this machine uses. Standard library only."""

from __future__ import annotations

import socket

#: Below Linux's ports for outgoing connections (32768 up), so that no connection takes the port before rank 0 listens
#: on it; above Lightning's own choice for Slurm jobs (15000 to 24999).
PORTS = range(25000, 32768)


def claim(number: int = 0, ports: range = PORTS) -> tuple[int, socket.socket]:
    """(port, lock): a free port, and the lock that prevents other trials on this machine from choosing it.

    The lock is a Unix socket with an abstract name, held while it is open. All containers of a node share such names,
    as they share ports, while each has its own /tmp; and another user's file cannot block a name. Jobs start their
    search at different ports, by their `number`. Raises OSError if every port is in use.
    """
    for step in range(len(ports)):
        port = ports[(number + step) % len(ports)]
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0launcher-port-{port}")
            with socket.socket() as listener:
                listener.bind(("", port))
        except OSError:
            lock.close()
            continue
        return port, lock
    raise OSError(f"every port from {ports.start} to {ports.stop - 1} of {socket.gethostname()} is in use")
