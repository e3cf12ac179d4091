"""Rows out of Apache Arrow's formats: .parquet files, and what the datasets library has on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.pairs.forms import KEYS
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused

_ROWS = 256  # turned into Python at once: a MB or so
_BUFFER = 1 << 20
_LACKING = "pip install '.[data]', or give the set as .jsonl"


def read_parquet(path: Path, at: Callable[[float], None] | None = None) -> Iterator[Record]:
    """The rows of a .parquet, the columns that a pair may need, a batch at a time. Raises Refused."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise Refused([Finding(str(path), "", "needs the package 'pyarrow'", _LACKING)]) from error
    number = 0
    try:
        # Not whole columns of a row group, which may be the whole file, but this many bytes of each at a time.
        with ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            total = max(file.metadata.num_rows, 1)
            columns = [name for name in file.schema_arrow.names if name in KEYS]
            for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", row)
                if at:
                    at(number / total)
    except (ArrowException, OSError) as error:
        why = f"is damaged or no Parquet file ({error})"
        raise Refused([Finding(str(path), "", why, "copy or download the file again")]) from error


def saved_splits(folder: Path) -> dict[str, Path] | None:
    """The folders of a set that was written with save_to_disk, by split ("" for a set without); None for others."""
    if (folder / "dataset_dict.json").is_file():
        return {place.parent.name: place.parent for place in sorted(folder.glob("*/state.json"))}
    return {"": folder} if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def read_saved(folder: Path, at: Callable[[float], None] | None = None) -> Iterator[Record]:
    """The rows of one split of a set written with save_to_disk, mapped into memory. Raises Refused."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise Refused([Finding(str(folder), "", "needs the package 'datasets'", _LACKING)]) from error
    try:
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        why = f"is no whole set of save_to_disk ({error})"
        raise Refused([Finding(str(folder), "", why, "copy or write it again")]) from error
    yield from read_dataset(dataset, str(folder), at)


def read_dataset(dataset: Any, name: str, at: Callable[[float], None] | None = None) -> Iterator[Record]:
    """The rows of a datasets.Dataset; `name` is what messages call it."""
    chosen = dataset.select_columns([column for column in dataset.column_names if column in KEYS])
    number = 0
    for batch in chosen.iter(_ROWS):
        for row in _rows(batch):
            number += 1
            yield Record(f"{name}, row {number}", row)
        if at:
            at(number / max(len(dataset), 1))


def _rows(batch: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
