"""A folder as a whole: made beside its name and renamed, over one of the same kind only. Stdlib only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep import scratch
from launcher.findings import Finding, Refused

#: One of these is in every folder that a model or an adapter was written to.
_MARKS = ("config.json", "adapter_config.json")


def check(key: str, out: Path, force: bool) -> None:
    """Raises Refused where `out` is there and may not be replaced; an empty folder may. `key` is the option's name."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise Refused([Finding(key, str(out), "is there and is no folder", "name a new folder")])
    inside = {path.name for path in out.iterdir()}
    if inside and not inside & set(_MARKS):
        why = "is a folder with other things in it"
        raise Refused([Finding(key, str(out), why, "name a new folder")])
    if inside and not force:
        raise Refused([Finding(key, str(out), "is there already", "name a new folder, or --force to replace it")])


@contextmanager
def made(key: str, out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block ends well. Raises Refused where it cannot be written."""
    out = out.absolute()
    try:
        with scratch.beside(out) as beside:
            folder = beside / out.name
            folder.mkdir()
            yield folder
            old = beside / "old"
            if out.exists():
                os.replace(out, old)
            os.replace(folder, out)
            if old.exists():
                shutil.rmtree(old)
    except OSError as error:
        why, remedy = f"cannot be written ({error.strerror or error})", "name a folder that can be written, with room"
        raise Refused([Finding(key, str(out), why, remedy)]) from None
