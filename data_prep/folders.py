"""Writes a folder whole or not at all: fill it under a temporary name, then rename it. Replaces only folders that this
project made. Stdlib only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep import scratch
from launcher import whole_file
from launcher.findings import Finding, Refused

#: A file in every folder made here; it lists the names of the other files. Any file not listed belongs to the user.
MARK = ".dpo-launcher.json"


def check(key: str, out: Path, force: bool) -> None:
    """Raises Refused if `out` exists and may not be replaced; `key` is the option's name in the message.

    An empty folder may be replaced. With `force`, so may a folder made here to which no other file was added.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise Refused([Finding(key, str(out), "exists and is not a folder", "name a new folder")])
    others = {path.name for path in out.iterdir()} - _own(out)
    if others:
        why = f"is a folder with other files in it, such as {min(others)}"
        raise Refused([Finding(key, str(out), why, "name a new folder")])
    if _own(out) and not force:
        raise Refused([Finding(key, str(out), "exists already", "name a new folder, or use --force to replace it")])


def _own(folder: Path) -> set[str]:
    try:
        names = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError):
        return set()
    return {MARK, *names} if isinstance(names, list) and all(isinstance(name, str) for name in names) else set()


@contextmanager
def new_folder(key: str, out: Path) -> Iterator[Path]:
    """Yields a folder to fill; it is renamed to `out` if the block ends without an error.

    Raises Refused if it cannot be written.
    """
    out = out.absolute()
    try:
        with scratch.beside(out) as beside:
            folder = beside / out.name
            folder.mkdir()
            yield folder
            put(folder, out, beside / "old")
    except OSError as error:
        why, remedy = f"cannot be written ({error.strerror or error})", "name a folder that can be written, with room"
        raise Refused([Finding(key, str(out), why, remedy)]) from None


def put(folder: Path, out: Path, old: Path) -> None:
    """List the files of `folder` as made here, and rename it to `out`.

    The previous `out` is moved to `old` first, and moved back if the rename fails.
    """
    whole_file.write_json(folder / MARK, sorted(path.name for path in folder.iterdir()))
    if out.exists():
        os.replace(out, old)
    try:
        os.replace(folder, out)
    except OSError:
        if old.exists():
            os.replace(old, out)
        raise
    if old.exists():
        shutil.rmtree(old)
