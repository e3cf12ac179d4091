"""A claim on a piece of work, as a file in a shared folder, that ends with its owner.

No file locks: not every shared disk has them, and some hold them for hours after their owner's node has died. An owner
writes a new number into its file every few seconds instead. Others take it for dead once the number has stood still for
long enough by their own clock, so that the nodes' clocks need not agree; the file is opened anew for each look, which
is when network disks look for changes themselves.

Two may still do the same work: when an owner was held up, or two took over from a dead one at once. So what is claimed
has to be work whose outcome is written whole, and may be written twice. Standard library only.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection
from pathlib import Path

#: Seconds between two signs of life, and without one until an owner is taken for dead.
BEAT, DEAD = 3.0, 45.0


class Lease:
    """A claim that is held, until it is released or this process ends."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path = path
        self._owner = owner
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"lease of {path.name}")
        self._thread.start()

    def release(self) -> None:
        """Give it up."""
        self._over.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        number = 0
        while not self._over.wait(BEAT):
            number += 1
            try:
                self.path.write_text(_words(self._owner, number))
            except OSError:  # a disk that is away for a moment; others may take over, which is allowed
                continue


class Claims:
    """The claims in a folder, as one owner sees them; `owner` names it, the same again after it was started anew."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner
        self._seen: dict[str, tuple[str, float]] = {}  # name -> (what its file said, when it first said so)

    def take(self, name: str) -> Lease | None:
        """The claim on `name`, or None while another owner that lives has it."""
        path = self._folder / name
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                if self._lives(path):
                    return None
                path.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as stream:
                stream.write(_words(self._owner, 0))
            return Lease(path, self._owner)
        return None  # another one was faster

    def discard(self, names: Collection[str]) -> None:
        """Remove the claims on work that is done, whichever trial made them.

        An owner that is killed after it has written its work and before its release leaves its claim behind.
        """
        for path in self._folder.iterdir():
            if path.name in names:
                path.unlink(missing_ok=True)

    def _lives(self, path: Path) -> bool:
        try:
            text = path.read_text()
        except FileNotFoundError:
            return False
        now = time.monotonic()
        before = self._seen.get(path.name)
        if before is None or before[0] != text:
            self._seen[path.name] = before = text, now
        owner, place, pid = (text.split("\n") + ["", "", ""])[:3]
        if owner == self._owner and (place, pid) != (_place(), str(os.getpid())):
            return False  # ourselves, before we were stopped
        if place == _place() and pid.isdigit() and not _runs(int(pid)):
            return False
        return now - before[1] < DEAD


def _words(owner: str, number: int) -> str:
    return f"{owner}\n{_place()}\n{os.getpid()}\n{number}\n"


def _place() -> str:
    """Where a process id means something: this machine, or this container on it."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return f"{socket.gethostname()} {space}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
