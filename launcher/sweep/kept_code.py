"""The copy of the launcher's code in a sweep's folder: what every start of its trials runs.

SWEEP/code/0/launcher.zip      the package; Python imports it from the archive
SWEEP/code/0/functions.sh ...  what the batch script sources and calls

An update or an edit of the clone changes no trial of a sweep that exists already: requeues and retries run the same
code as the first start. `retry --code current` adds code/1, and so on. sweep.json has the SHA-256 of each copy.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from launcher.slurm import template

ARCHIVE = "launcher.zip"
_SCRIPTS = ("functions.sh", "in_container.sh", "sweep.sbatch")
_NOT_IN_JOBS = ("plugins", "sbatch", "configs")  # subfolders of the package: only submission uses them


def place(sweep: Path, number: int) -> Path:
    """The folder of a copy."""
    return sweep / "code" / str(number)


def pythonpath(sweep: Path, number: int) -> str:
    """The entry of PYTHONPATH for a copy, for processes that work in the sweep's folder.

    A colon would end the entry, so a path with one is relative to the sweep's folder.
    """
    archive = place(sweep, number) / ARCHIVE
    return str(archive.relative_to(sweep) if ":" in str(archive) else archive)


def write(sweep: Path, number: int) -> None:
    """Write the code that runs now as copy `number`. Raises OSError."""
    folder = place(sweep, number)
    folder.mkdir(parents=True)
    files = _today()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # 0.9 MB; compressing it would take longer than the rest
        for name, content in files.items():
            if name not in _SCRIPTS:
                archive.writestr(zipfile.ZipInfo(name), content)  # without the time, which the digest leaves out too
    for name, content in ((ARCHIVE, stream.getvalue()), *((name, files[name]) for name in _SCRIPTS)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o400)


def sha256_today() -> str:
    """The SHA-256 of the code that runs now."""
    return _digest(_today())


def sha256_of(sweep: Path, number: int) -> str:
    """The SHA-256 of a copy, as it is on the disk; "" if it is missing or damaged."""
    folder = place(sweep, number)
    try:
        files = {name: (folder / name).read_bytes() for name in _SCRIPTS}
        with zipfile.ZipFile(folder / ARCHIVE) as archive:
            files |= {name: archive.read(name) for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return ""
    return _digest(files)


@lru_cache(maxsize=1)
def _today() -> dict[str, bytes]:
    """The content of each file, by its name in the archive or beside it."""
    package = Path(__file__).resolve().parents[1]
    names = [path.relative_to(package) for path in sorted(package.rglob("*.py"))]
    wanted = [name for name in names if name.parts[0] not in _NOT_IN_JOBS]
    files = {f"launcher/{name.as_posix()}": (package / name).read_bytes() for name in wanted}
    return files | {name: (template.folder() / name).read_bytes() for name in _SCRIPTS}


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
