"""Write files that readers see whole or not at all, even if the writer is killed; read files that others may write."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 22  # bytes that are hashed at a time


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
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
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
    """Hold an exclusive flock on the file, which is created if needed; a link is not followed.

    Raises BlockingIOError if another process holds it and `wait` is False.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
