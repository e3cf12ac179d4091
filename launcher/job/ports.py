"""A TCP port for a trial's rank 0, that no other trial on this machine is given. Standard library only."""

from __future__ import annotations

import socket

#: Below the range from which Linux gives ports to outgoing connections (32768 up), so that none of those takes it
#: between our choice and the moment rank 0 listens; above Lightning's own choice for Slurm jobs (15000 to 24999).
PORTS = range(25000, 32768)


def claim(number: int = 0, ports: range = PORTS) -> tuple[int, socket.socket]:
    """A free port, and the lock that keeps it ours: two trials on one machine never choose the same.

    The lock is a Unix socket with an abstract name, held as long as it is open. Such a name is known wherever the port
    is: in all containers of a node, which have a /tmp each. And no file of another user can stand in its place. Jobs
    begin their search at different ports, by their `number`. Raises OSError where every port is in use.
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
