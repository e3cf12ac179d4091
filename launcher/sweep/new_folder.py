"""Writing a sweep's folder, which appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from launcher.sweep.records import PlainConfig


def write_configs(folder: Path, configs: Iterable[tuple[int, PlainConfig]]) -> None:
    from launcher.sweep import config_file  # PyYAML takes a while to import

    for number, config in configs:
        trial = folder / str(number)
        trial.mkdir()
        (trial / "config.yaml").write_text(config_file.dump(config), encoding="utf-8")


def put_in_place(beside: Path, folder: Path, mode: int) -> None:
    """Rename `beside` to `folder`; if that has files already, move the contents, sweep.json last."""
    try:
        os.rename(beside, folder)
        return
    except OSError:
        if not folder.is_dir():
            raise
    moved: list[Path] = []
    names = sorted((path.name for path in beside.iterdir()), key=lambda name: name == "sweep.json")
    try:
        folder.chmod(mode)
        for name in names:
            os.rename(beside / name, folder / name)
            moved.append(folder / name)
    except BaseException:
        for path in moved:
            shutil.rmtree(path, ignore_errors=True)
        raise
