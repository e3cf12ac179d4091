"""Write files that readers see whole or not at all, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of `path` once the block ends without an exception.

    The content is written beside `path` under a name of this thread's own, flushed to the disk and renamed. The
    temporary file is never one that exists already: a link planted under its name is not followed. It is removed when
    the block raises. Several processes and threads may write the same `path`; the last one to finish wins.
    """
    beside = path.with_name(f".{path.name}.{os.uname().nodename}.{threading.get_native_id()}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()  # a thread of the same id was killed while it wrote
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
