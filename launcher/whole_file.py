"""Write files that readers see whole or not at all, even if the writer is killed; read files that others may write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 22  # bytes that are hashed at a time
_RETRY_S = 0.05  # between two looks at a lock that another process holds


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content replaces `path` when the block ends without an exception.

    The content is written to a file with a random name in the same folder, flushed to the disk and renamed. That file
    must not exist before, so that a link planted under its name is not followed. It is removed if the block raises.
    Several processes may write the same `path`, also in containers whose host and process ids are equal; the last one
    to finish wins.
    """
    beside = path.with_name(f".{path.name}.{os.urandom(6).hex()}.new")
    try:
        with open(beside, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:  # a full disk does not say of itself which
            error.filename = str(path)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, data: object) -> None:
    write_text(path, json.dumps(data, indent=1))


@contextlib.contextmanager
def regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened for reading. Raises OSError for anything else.

    Others may write to the folder: it does not follow a link, and does not wait for a FIFO or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        yield stream


def read(path: Path) -> bytes | None:
    """The content of a regular file; None if there is none, or it cannot be read now."""
    try:
        with regular(path) as stream:
            return stream.read()
    except OSError:
        return None


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none, it cannot be read, or it is truncated."""
    content = read(path)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        return None


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on the file, which is created if needed; a link is not followed.

    The lock is an flock. If the file system has none (Lustre mounted without `-o flock`), it is a file beside `path`
    that only one process can create (see `_Beside`). Raises BlockingIOError if another process holds the lock and
    `wait` is False.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        beside = None if _flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) else _Beside(path)
        if beside:
            beside.take(wait)
        try:
            yield
        finally:
            if beside:
                beside.give_back()
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds `locked(path)`: on this machine, or on another where the disk's locks are shared.

    The lock is taken for microseconds to find out: a process that wants it without waiting at that very moment fails.
    """
    try:
        with regular(path) as stream:
            if _flock(stream.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB):
                return False
            return _Beside(path).is_held()
    except BlockingIOError:
        return True
    except OSError:
        return False


def _flock(descriptor: int, operation: int) -> bool:
    """Whether the lock was taken: False where the file system has no locks. Raises BlockingIOError."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        return False
    return True


class _Beside:
    """A lock that needs no flock: PATH.held, which names its holder's machine, process and that process's start."""

    def __init__(self, path: Path) -> None:
        self.file = path.with_name(path.name + ".held")

    def take(self, wait: bool) -> None:
        while True:
            try:
                descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                if self._remove_dead():
                    continue
                if not wait:
                    raise BlockingIOError(errno.EAGAIN, "is held by another process", str(self.file)) from None
                time.sleep(_RETRY_S)
                continue
            with open(descriptor, "wb") as stream:
                stream.write(_identity(os.getpid()).encode())
            return

    def give_back(self) -> None:
        self.file.unlink(missing_ok=True)

    def is_held(self) -> bool:
        text = read(self.file)
        return text is not None and not _is_dead(text.decode(errors="replace"))

    def _remove_dead(self) -> bool:
        """Remove the file of a holder that died on this machine; whether there was one.

        It is first renamed to a random name, and put back if another process has replaced it meanwhile.
        """
        text = read(self.file)
        if text is None or not _is_dead(text.decode(errors="replace")):
            return False
        aside = self.file.with_name(f"{self.file.name}.{os.urandom(6).hex()}")
        try:
            os.rename(self.file, aside)
        except FileNotFoundError:
            return True
        if read(aside) != text:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.file)
        aside.unlink()
        return True


def _identity(pid: int) -> str:
    """A process, distinct from others on this machine before and after it: proc(5), field 22 of stat is its start."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        started = ""
    return f"{socket.gethostname()} {pid} {started}"


def _is_dead(identity: str) -> bool:
    """Whether the process is known to have ended: it ran on this machine and does not now."""
    host, _, rest = identity.partition(" ")
    pid = rest.partition(" ")[0]
    return host == socket.gethostname() and pid.isdigit() and _identity(int(pid)) != identity


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
