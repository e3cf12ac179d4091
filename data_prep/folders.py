"""Folders that are written whole: made beside their name and renamed, over one of this project's only. Stdlib only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep import scratch
from launcher.findings import Finding, Refused

#: In every folder that was made here: the names of its files. Anything else in it is somebody's own.
MARK = ".dpo-launcher.json"


def check(key: str, out: Path, force: bool) -> None:
    """Raises Refused where `out` is there and may not be replaced; `key` is the option's name.

    An empty folder may be replaced, and with `force` one that was made here and holds nothing but what was made.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise Refused([Finding(key, str(out), "is there and is no folder", "name a new folder")])
    others = {path.name for path in out.iterdir()} - _own(out)
    if others:
        why = f"is a folder with other things in it, such as {min(others)}"
        raise Refused([Finding(key, str(out), why, "name a new folder")])
    if _own(out) and not force:
        raise Refused([Finding(key, str(out), "is there already", "name a new folder, or --force to replace it")])


def _own(folder: Path) -> set[str]:
    try:
        names = json.loads((folder / MARK).read_bytes())
    except (OSError, ValueError):
        return set()
    return {MARK, *names} if isinstance(names, list) and all(isinstance(name, str) for name in names) else set()


@contextmanager
def new_folder(key: str, out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well. Raises Refused where it cannot be written."""
    out = out.absolute()
    try:
        with scratch.beside(out) as beside:
            folder = beside / out.name
            folder.mkdir()
            yield folder
            (folder / MARK).write_text(json.dumps(sorted(path.name for path in folder.iterdir())), encoding="utf-8")
            _replace(folder, out, beside / "old")
    except OSError as error:
        why, remedy = f"cannot be written ({error.strerror or error})", "name a folder that can be written, with room"
        raise Refused([Finding(key, str(out), why, remedy)]) from None


def _replace(folder: Path, out: Path, old: Path) -> None:
    """Rename `folder` to `out`; what was there is kept in `old` until then, and put back where that fails."""
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
