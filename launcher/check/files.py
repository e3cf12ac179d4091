"""Checks the files that a trial reads: a .nemo checkpoint, JSONL preference pairs. Standard library only."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from launcher.findings import Finding
from launcher.nemo import data_files

MOST_SHOWN = 3
_BLOCK = 512  # bytes; a tar consists of such blocks and ends with two blocks of zeros (POSIX ustar)


def check_nemo(path: Path) -> list[Finding]:
    """Findings on a .nemo file: missing, not an archive, truncated, or without the parts that NeMo restores from.

    It reads the archive's headers only, so a file of 16 GB takes milliseconds.
    """
    key = "pretrained_checkpoint.restore_from_path"
    make = "make it with data_prep/convert_checkpoint.py"
    if not path.exists():
        return [Finding(key, str(path), "no such file", f"{make}, or name an existing one")]
    if path.is_dir():  # an unpacked .nemo, which NeMo takes as well
        names = [str(file.relative_to(path)) for file in path.rglob("*")]
        missing = [] if "model_config.yaml" in names else ["model_config.yaml"]
        missing += [_LAST] if _unfinished(names) else []
        return [Finding(key, str(path), f"has no {name}", make) for name in missing]
    try:
        with tarfile.open(path, "r:*") as archive:
            names = [member.name.removeprefix("./") for member in archive]
            end = archive.offset
    except PermissionError:
        return [Finding(key, str(path), "is not readable", "check its permissions")]
    except (tarfile.TarError, EOFError, OSError) as error:
        return [Finding(key, str(path), f"is truncated, or is not a .nemo archive ({error})", f"{make} again")]
    if _uncompressed(path) and path.stat().st_size < end:
        return [Finding(key, str(path), "is truncated", f"{make} again")]
    if "model_config.yaml" not in names or not any(name.startswith("model_weights") for name in names):
        return [Finding(key, str(path), "has no model_config.yaml or no model_weights inside", f"{make} again")]
    if _unfinished(names):
        return [Finding(key, str(path), f"has no {_LAST} inside", f"{make} again")]
    return []


#: The file of a distributed checkpoint that is written last, and that Megatron reads first.
_LAST = "model_weights/metadata.json"


def _unfinished(names: Collection[str]) -> bool:
    return any(name.startswith("model_weights/") for name in names) and _LAST not in names


def _uncompressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) != b"\x1f\x8b"


def check_jsonl(path: Path) -> tuple[int, list[Finding]]:
    """(rows, findings) of a file of preference pairs. Each finding names file and line; at most three a file.

    A file that is unchanged since prepare_data.py wrote it is not read: prepare_data.py has checked every row.
    """
    remedy = "prepare it with data_prep/prepare_data.py"
    if not path.is_file():
        return 0, [Finding(str(path), "", "no such file", remedy)]
    known = data_files.record(path)
    if known is not None and known.rows and known.describes(path) and os.access(path, os.R_OK):
        return known.rows, []
    problems: list[Finding] = []
    rows = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                rows += 1
                problem = _row_problem(line)
                if problem and len(problems) < MOST_SHOWN:
                    problems.append(Finding(f"{path}:{number}", "", problem, "correct or drop the row"))
    except OSError as error:
        return 0, [Finding(str(path), "", f"cannot be read ({error.strerror})", "check its permissions")]
    if rows == 0:
        problems.append(Finding(str(path), "", "is empty", remedy))
    return rows, problems


def check_packed(path: Path) -> tuple[int, list[Finding]]:
    """(packs, findings) of a NumPy file of packed pairs. Reads only the header."""
    remedy = "write it with data_prep/prepare_data.py --pack"
    try:
        return data_files.count_packs(path), []
    except FileNotFoundError:
        return 0, [Finding(str(path), "", "no such file", remedy)]
    except OSError as error:
        return 0, [Finding(str(path), "", f"cannot be read ({error.strerror})", "check its permissions")]
    except ValueError as error:
        return 0, [Finding(str(path), "", str(error), remedy)]


def longer_rows(path: Path, tokens: int) -> int:
    """How many rows of a file of pairs may be longer than `tokens`, from the dataset.json that prepare_data.py writes.

    The number is exact if `tokens` is an edge of the histogram, else an upper bound. It is 0 if nothing is known: no
    dataset.json, one made without a tokenizer, or a file that has changed since.
    """
    known = data_files.record(path)
    if known is None or known.unit != "tokens":
        return 0
    try:
        longest, bins = known.lengths["max"], known.lengths["histogram"]
        if longest <= tokens:
            return 0
        return sum(rows for edge, rows in bins.items() if edge.startswith(">") or int(edge.split()[1]) > tokens)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):  # not written by prepare_data.py
        return 0


def _row_problem(line: bytes) -> str:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        return f"is not JSON ({error})"
    if not isinstance(row, dict):
        return "is not a JSON object"
    for key in ("prompt", "chosen_response", "rejected_response"):
        value = row.get(key)
        if not isinstance(value, str):
            return f"has no text under '{key}'"
        if not value.strip():
            return f"has an empty '{key}'"
    if row["chosen_response"] == row["rejected_response"]:
        return "has the same text as chosen and as rejected response"
    for key in ("chosen_reward", "rejected_reward"):
        if key in row and (not isinstance(row[key], (int, float)) or isinstance(row[key], bool)):
            return f"has no number under '{key}'"
    return ""
