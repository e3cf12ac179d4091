"""Finds a trial's whole checkpoints by the manifest beside each, which is written last. Standard library only.

<trial>/results/checkpoints/NAME.ckpt, mp_rank_0N/NAME.ckpt or NAME/       what NeMo writes, one of the three
<trial>/results/checkpoints/NAME.manifest.json                             its step, and each file's size and SHA-256

A process killed while it saves, a full disk, or a node that lost unwritten data leaves files that look like a
checkpoint. A checkpoint is whole only if its files match the manifest byte for byte.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from launcher import whole_file

FOLDER = Path("results") / "checkpoints"
SUFFIX = ".manifest.json"


class Manifest(TypedDict):
    """NAME.manifest.json."""

    name: str
    step: int
    consumed_samples: int
    time: float
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    """As NeMo names it: NAME.ckpt (with tensor parallelism there is one in each mp_rank_0N/ instead), or a folder."""
    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Training pairs seen, all ranks together."""
    written: float
    """Seconds since the epoch."""


def last_good(trial_dir: Path | str, hashes: bool = True) -> Checkpoint | None:
    """The whole checkpoint with the highest step (if several, the last written); None if there is none.

    Without `hashes`, only file sizes are compared and no checkpoint is read.
    """
    return newest(Path(trial_dir) / FOLDER, hashes)


def newest(folder: Path, hashes: bool = True) -> Checkpoint | None:
    """Like last_good, for a folder of checkpoints."""
    manifests = [read for path in folder.glob("*.ckpt" + SUFFIX) if (read := _read(path))]
    for manifest in sorted(manifests, key=lambda manifest: (manifest["step"], manifest["time"]), reverse=True):
        if matches(folder, manifest, hashes):
            path = folder / manifest["name"]
            return Checkpoint(path, manifest["step"], manifest["consumed_samples"], manifest["time"])
    return None


def kept(trial_dir: Path | str) -> list[Checkpoint]:
    """The trial's whole checkpoints, one a step, by their steps."""
    folder = Path(trial_dir) / FOLDER
    found: dict[int, Checkpoint] = {}
    for manifest in filter(None, map(_read, sorted(folder.glob("*.ckpt" + SUFFIX)))):
        if manifest["step"] not in found and matches(folder, manifest):
            path = folder / manifest["name"]
            found[manifest["step"]] = Checkpoint(path, manifest["step"], manifest["consumed_samples"], manifest["time"])
    return [found[step] for step in sorted(found)]


def manifest_of(path: Path) -> Path:
    """The manifest's path for a checkpoint (named with or without .ckpt) or a .nemo."""
    name = path.name if path.suffix in (".ckpt", ".nemo") else path.name + ".ckpt"
    return path.with_name(name + SUFFIX)


def is_whole(path: Path, hashes: bool = True) -> bool:
    """Whether a checkpoint or a .nemo has a manifest and matches it."""
    manifest = _read(manifest_of(path))
    return manifest is not None and matches(path.parent, manifest, hashes)


def step_and_time(path: Path) -> tuple[int, float]:
    """(step, seconds since 1970) from a checkpoint's manifest; (-1, 0) if it has none."""
    manifest = _read(manifest_of(path))
    return (manifest["step"], manifest["time"]) if manifest else (-1, 0.0)


def matches(folder: Path, manifest: Manifest, hashes: bool = True) -> bool:
    """Whether all files of a manifest exist and match its sizes and (with `hashes`) SHA-256."""
    try:
        for name, (size, digest) in manifest["files"].items():
            if (folder / name).stat().st_size != size or (hashes and whole_file.sha256(folder / name) != digest):
                return False
    except FileNotFoundError:
        return False
    return True


def parts_of(path: Path) -> list[Path]:
    """The parts of a checkpoint (or a .nemo) that exist: its folder, its file, or the files of model-parallel ranks."""
    bare = path.with_suffix("") if path.suffix == ".ckpt" else path
    if bare.is_dir():
        return [bare]
    return [part for part in (path, *sorted(path.parent.glob(f"*_rank_*/{path.name}"))) if part.is_file()]


def files_of(path: Path) -> list[str]:
    """The files that make a checkpoint (or a .nemo), relative to its folder, sorted."""
    files: list[Path] = []
    for part in parts_of(path):
        files += (file for file in part.rglob("*") if file.is_file()) if part.is_dir() else [part]
    return sorted(str(file.relative_to(path.parent)) for file in files)


def describe(file: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file. Before returning, syncs the file to the disk."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
    return file.stat().st_size, whole_file.sha256(file)


def write_manifest(path: Path, files: Mapping[str, tuple[int, str]], step: int, consumed_samples: int) -> None:
    """Declare a checkpoint (or a .nemo) whole. `files`: the result of describe() for each of files_of(path)."""
    name = path.with_suffix("").name if path.with_suffix("").is_dir() else path.name
    manifest: Manifest = {
        "name": name, "step": step, "consumed_samples": consumed_samples, "time": time.time(), "files": files,
    }  # fmt: skip
    whole_file.write_json(manifest_of(path), manifest)


def all_of(folder: Path) -> list[Path]:
    """Everything in a folder that looks like a checkpoint, complete or not."""
    files: Iterable[Path] = (*folder.glob("*.ckpt"), *folder.glob("*_rank_*/*.ckpt"))
    names = {file.name for file in files}
    folders = [path for path in folder.glob("*") if path.is_dir() and "_rank_" not in path.name]
    return sorted([*(folder / name for name in names), *folders])


def _read(path: Path) -> Manifest | None:
    try:
        manifest = whole_file.read_json(path)
        return Manifest(
            name=manifest["name"],
            step=int(manifest["step"]),
            consumed_samples=manifest["consumed_samples"],
            time=manifest["time"],
            files=dict(manifest["files"]),
        )
    except (ValueError, KeyError, TypeError):  # its node died while writing it
        return None
