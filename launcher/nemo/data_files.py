"""The files of pairs that NeMo-Aligner reads, one per split: their rows, and what dataset.json records about them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import whole_file

RECORD = "dataset.json"
KEY = "model.data.data_prefix"


def count_rows(path: Path, packed: bool) -> int:
    """Rows of a JSONL file, or packs of a NumPy file. Raises OSError, and ValueError if it is not a file of packs."""
    if packed:
        return count_packs(path)
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def count_packs(path: Path) -> int:
    """Packs in a file that prepare_data.py --pack wrote. Reads only the header (numpy.lib.format, version 1.0).

    Raises OSError, and ValueError if it is not such a file.
    """
    with path.open("rb") as stream:
        magic = stream.read(8)
        text = stream.read(int.from_bytes(stream.read(2), "little")).decode("latin-1")
    try:
        header = ast.literal_eval(text)
        (rows,) = header["shape"]
        objects = "O" in header["descr"]
    except (SyntaxError, ValueError, TypeError, KeyError) as error:
        raise ValueError("is no NumPy file of packs") from error
    if not magic.startswith(b"\x93NUMPY") or not objects or not rows:
        raise ValueError("is no NumPy file of packs, or is empty")
    return int(rows)


def only_file(names: Sequence[str]) -> Path:
    """The file of a split. Raises ValueError if there are several.

    NeMo accepts a blend: [weight, file, weight, file, ...]. It fails here: NeMo-Aligner's DPO requests all rows as a
    negative number of samples (train_gpt_dpo.py), and NeMo's BlendableDataset allocates arrays of that size.
    """
    if len(names) != 1:
        raise ValueError("NeMo-Aligner's DPO reads one file and takes no blend: write the rows into one file")
    return Path(names[0])


@dataclass(frozen=True)
class FileRecord:
    """What the dataset.json beside a file says about it. prepare_data.py writes it once the files are written."""

    rows: int | None
    sha256: str | None
    rewarded_rows: int | None
    """Rows that have their own rewards."""
    unit: str
    """Unit of the lengths: tokens or characters."""
    lengths: Mapping[str, Any]
    """mean, max, histogram {`<= 192`: rows, ..., `> 8192`: rows} of the longer side of each pair, prompt included."""
    written_after: bool
    """Whether the record is newer than the file, so the file has not changed since."""

    def describes(self, path: Path) -> bool:
        """Whether the file's content is what was recorded. Reads the file if its time stamp does not show that."""
        if self.sha256 is None:
            return False
        if self.written_after:
            return True
        return whole_file.sha256(path) == self.sha256


def record(path: Path) -> FileRecord | None:
    """The record of a file; None if there is none, or it records another size."""
    try:
        described = path.parent / RECORD
        data = json.loads(described.read_bytes())
        facts, stat = data["files"][path.name], path.stat()
        if facts["bytes"] != stat.st_size:
            return None
        lengths = data.get("lengths", {})
        return FileRecord(
            rows=data.get("rows", {}).get(path.stem),
            sha256=facts.get("sha256"),
            rewarded_rows=data.get("rewarded_rows", {}).get(path.stem),
            unit=lengths.get("unit", ""),
            lengths=lengths.get(path.stem, {}),
            written_after=described.stat().st_mtime_ns >= stat.st_mtime_ns,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not written by prepare_data.py
        return None
