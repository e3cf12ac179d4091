"""The output folder: writes all files or none, and recognises files that are up to date."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.pairs import packed, splits
from data_prep.scratch import abandoned
from launcher.findings import Finding, Refused
from launcher.whole_file import sha256

RECORD = "dataset.json"
PAIRS = tuple(f"{name}.jsonl" for name in splits.NAMES)
PACKED = tuple(packed.name(name) for name in splits.NAMES)  # only with --pack
FILES = (*PAIRS, *PACKED, RECORD)  # the record last: without it the set is incomplete


def made_from(folder: Path, recipe: Mapping[str, object]) -> dict[str, object] | None:
    """The record of `folder` if it was made with `recipe` and its files are unchanged, else None."""
    record = _record(folder)
    if record is None or any(record.get(key) != value for key, value in _as_json(recipe).items()):
        return None
    files = record.get("files")
    if not isinstance(files, dict):
        return None
    try:
        for name, facts in files.items():
            path = folder / name
            if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
                return None
    except OSError:
        return None
    return record


def check(folder: Path, sources: Sequence[Path], force: bool) -> None:
    """Raises Refused if writing to `folder` would destroy the source or files that this command did not make."""
    mine = {(folder / name).resolve() for name in FILES}
    for path in sources:
        if path.resolve() in mine:
            why = f"would overwrite the source {path.name}"
            raise Refused([Finding("--out", str(folder), why, "name another folder")])
    present = [name for name in FILES if (folder / name).exists()]
    published = any((left / RECORD).exists() for left in folder.glob(".partial.*"))  # in part, by a run that was killed
    if present and _record(folder) is None and not force and not published:
        why = f"contains {present[0]}, which prepare_data.py did not write"
        raise Refused([Finding("--out", str(folder), why, "name another folder, or overwrite it with --force")])


def _record(folder: Path) -> dict[str, object] | None:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "rules" in record else None


def _as_json(value: Mapping[str, object]) -> dict[str, object]:
    """`value` after being written as JSON and read again (tuples become lists)."""
    return dict(json.loads(json.dumps(value)))


class Workspace:
    """A hidden folder inside the output folder. It is removed when the block ends, also after an error.

    with Workspace(folder) as work: write into work.path; work.publish(record)
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / f".partial.{socket.gethostname()}.{os.getpid()}"
        self._made: list[Path] = []

    def __enter__(self) -> Workspace:
        try:
            self._made = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self.path.mkdir()
        except OSError as error:
            self._remove()
            raise _cannot_write(self._folder, error) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._remove()
        if isinstance(error, OSError):  # a full disk; sources turn their own errors into Refused
            raise _cannot_write(self._folder, error) from error

    def publish(self, record: Mapping[str, Any]) -> None:
        """Move the files to the output folder. The files of an earlier run are removed first, so that the two are never
        mixed; the record comes last."""
        text = json.dumps(record, indent=1) + "\n"
        (self.path / RECORD).write_text(text, encoding="utf-8")
        for name in reversed(FILES):
            (self._folder / name).unlink(missing_ok=True)
        for name in FILES:
            if name in record["files"] or name == RECORD:
                os.replace(self.path / name, self._folder / name)

    def _remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        for path in self._made:
            try:
                path.rmdir()
            except OSError:  # not empty: it holds what was published
                return

    def _sweep(self) -> None:
        """Remove the folders that killed runs of this machine left."""
        for left in self._folder.glob(f".partial.{socket.gethostname()}.*"):
            pid = left.name.rpartition(".")[2]
            if pid.isdecimal() and abandoned(int(pid)):
                shutil.rmtree(left, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> Refused:
    why = f"cannot be written ({error.strerror or error})"
    return Refused([Finding("--out", str(folder), why, "name a folder that can be written, on a disk with free space")])
