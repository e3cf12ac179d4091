"""Work that continues after a kill: a hidden folder beside the output, with a journal of its finished parts.

Stdlib only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from launcher import whole_file
from launcher.findings import Finding, Refused

_MADE_FROM, _JOURNAL, _LOCK = "made_from.json", "journal.jsonl", "lock"


class Journal:
    """The parts of an output that are whole and on the disk, in the order in which they were written.

    A part's bytes must be synced before the part is added. A part that was cut off is not in the journal, however much
    of it is in the file: the writer truncates the file at the end of the last part.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # the last line may have been cut off by a kill
        self.parts: list[dict[str, Any]] = [json.loads(line) for line in whole]
        with path.open("ab") as stream:
            stream.truncate(sum(map(len, whole)))

    def add(self, part: dict[str, object]) -> None:
        self.parts.append(part)
        with self._path.open("ab") as stream:
            stream.write(json.dumps(part, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


@contextmanager
def work(key: str, output: Path, made_from: dict[str, object]) -> Iterator[tuple[Path, Journal]]:
    """(folder, journal) to make `output` with; the folder is `.NAME.unfinished` beside it, on the same file system.

    If a process was killed while it made `output` from the same `made_from`, its folder/NAME and journal are kept;
    everything else in the folder is removed. At the end the folder is removed, unless the process is interrupted or the
    disk fails: the same call then continues. Raises Refused if another process makes the same output, or if the folder
    cannot be created; `key` is the output's name in that message.
    """
    folder = output.with_name(f".{output.name}.unfinished")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(whole_file.locked(folder / _LOCK, wait=False))
            _keep_only(folder, output.name, made_from)
            whole_file.write_json(folder / _MADE_FROM, made_from)
            journal = Journal(folder / _JOURNAL)
        except BlockingIOError:
            why = "another process is making it"
            raise Refused([Finding(key, str(output), why, "wait for it, or name another output")]) from None
        except OSError as error:
            why, remedy = f"cannot be written ({error.strerror})", "name a folder that can be written"
            raise Refused([Finding(key, str(output), why, remedy)]) from None
        try:
            yield folder, journal
        except (OSError, KeyboardInterrupt, SystemExit):
            if not journal.parts:
                shutil.rmtree(folder)
            raise
        except BaseException:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _keep_only(folder: Path, name: str, made_from: dict[str, object]) -> None:
    """Remove what does not belong to an interrupted making of the same output from the same source."""
    same = whole_file.read_json(folder / _MADE_FROM) == json.loads(json.dumps(made_from))
    kept = {_LOCK, name, _JOURNAL} if same and (folder / _JOURNAL).exists() else {_LOCK}
    for left in folder.iterdir():
        if left.name in kept:
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()
