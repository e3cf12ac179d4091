"""Fills in the scripts in sbatch/: writes a new head of assignments above the script's own lines.

A script that is submitted by hand differs only in its head.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

_HEADING = "# -- what is run; sbatch/functions.sh explains these variables "
_BODY = "# -- the same in every script"


class Words(str):
    """Text that is already quoted for the shell, such as `cluster.python`; scripts get it unchanged."""


#: What a head assigns to a variable: one value, or an array of several words.
Value: TypeAlias = str | int | Path | Sequence[str | int | Path]


def folder() -> Path:
    """The folder sbatch/: beside the package in a clone, inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    return package / "sbatch" if (package / "sbatch").is_dir() else package.parent / "sbatch"


def read(name: str, scripts: Path | None = None) -> str:
    """The text of a script in the folder `scripts`, by default sbatch/."""
    return ((scripts or folder()) / f"{name}.sbatch").read_text(encoding="utf-8")


def fill(
    name: str,
    directives: Iterable[str],
    assignments: Mapping[str, Value],
    *,
    first: Sequence[str] = (),
    setup: Sequence[str] = (),
    teardown: Sequence[str] = (),
    scripts: Path | None = None,
) -> str:
    """The script `name` with a new head: `directives` (#SBATCH lines), the lines `first`, then the assignments.

    `setup` and `teardown` are shell lines that run before and after the work. `scripts` is where the script finds
    functions.sh; if the folder exists, the script's own lines come from there too.
    """
    text = read(name, scripts if scripts and scripts.is_dir() else None)
    lines = ["#!/bin/bash", text.splitlines()[1], *directives, "", _HEADING.ljust(120, "-"), *first]
    lines += ["functions=" + shlex.quote(str((scripts or folder()) / "functions.sh"))]
    lines += [f"{variable}={_quoted(value)}" for variable, value in assignments.items()]
    lines.append("")
    body = text[text.index(_BODY) :].splitlines()
    for line in body:
        lines.append(line)
        lines += setup if line.startswith("# setup:") else teardown if line.startswith("# teardown:") else ()
    return "\n".join(lines) + "\n"


def _quoted(value: Value) -> str:
    if isinstance(value, (str, int, Path)):
        return _word(value)
    return f"({' '.join(_word(word) for word in value)})"


def _word(value: str | int | Path) -> str:
    return value if isinstance(value, Words) else shlex.quote(str(value))
