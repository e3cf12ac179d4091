"""The folder of one policy's evaluation: one process at a time works in it, and its errors are noted there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from launcher import whole_file
from launcher.findings import Finding, LauncherError, Refused


class Busy(LauncherError):
    """Another process evaluates the same policy."""


def refuse_taken(folder: Path, path: Path, digest: str) -> None:
    """Raises Refused where the folder has the results of another policy of the same name."""
    before = whole_file.read_json(folder / "settings.json")
    before = before if isinstance(before, dict) else {}
    other = before.get("path")
    if other not in (None, str(path)) and before.get("made_with", {}).get("policy") != digest:
        why = f"has the name of {other}, which is beside this sweep already"
        raise Refused([Finding("--beside", str(path), why, f"give its folder another name, or remove {folder}")])


@contextlib.contextmanager
def working(folder: Path, title: str) -> Iterator[None]:
    """One process at a time evaluates a policy; an error is noted in its folder. Raises Busy."""
    for place in (folder.parent, folder):
        if place.is_symlink():
            raise Refused([Finding(str(place), "", "is a link", "remove it")])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file.locked(folder / "lock", wait=False):
            (folder / "error.json").unlink(missing_ok=True)
            try:
                yield
            except Exception as error:
                text = " ".join(str(error).split())[:400]
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                whole_file.write_json(folder / "error.json", {"error": f"{type(error).__name__}: {text}", "time": now})
                raise
    except BlockingIOError:
        raise Busy(f"{title}: another process evaluates it") from None
