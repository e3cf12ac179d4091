"""Reads rows from Parquet and Arrow files, and from folders that the datasets library wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.pairs.forms import FORMS, KEYS
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused

_ROWS = 256  # converted to Python objects at once: about 1 MB
_BUFFER = 1 << 20
_WITHOUT = "pip install '.[data]', or give the set as .jsonl"


def zstd(raw: BinaryIO) -> Any:
    """The decompressed stream of a zstd file. Raises Refused if pyarrow, which has the codec, is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise Refused(
            [Finding("SOURCE", "", "is packed with zstd, which needs the package 'pyarrow'", _WITHOUT)]
        ) from error
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")


def read_file(
    file: BinaryIO, name: str, at: Callable[[float], None] | None, columns: frozenset[str]
) -> Iterator[Record]:
    """Yields the rows of a Parquet or Arrow file, only the given columns, reading batch by batch. Raises Refused."""
    try:
        from pyarrow import ArrowException
    except ImportError as error:
        raise Refused([Finding(name, "", "needs the package 'pyarrow'", _WITHOUT)]) from error
    number = 0
    try:
        for batch, share in _batches(file, columns):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{name}, row {number}", row)
            if at:
                at(share)
    except (ArrowException, OSError) as error:
        why = f"is damaged, or is not a Parquet or Arrow file ({error})"
        raise Refused([Finding(name, "", why, "copy or download the file again")]) from error


def _batches(file: BinaryIO, columns: frozenset[str]) -> Iterator[tuple[Any, float]]:
    """Yields (batch of rows, share of the file read so far; 0 for Arrow)."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    start = file.read(6)
    file.seek(0)
    if start.startswith(b"PAR1"):
        # Read this many bytes of each column at a time, not whole columns of a row group, which may be the whole file.
        with ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER) as parquet:
            total, done = max(parquet.metadata.num_rows, 1), 0
            names = _selected(parquet.schema_arrow.names, columns)
            for batch in parquet.iter_batches(_ROWS, columns=names, use_threads=False):
                done += batch.num_rows
                yield batch, done / total
        return
    if start == b"ARROW1":
        reader = pyarrow.ipc.open_file(file)
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(file))
    for batch in batches:
        needed = batch.select(_selected(batch.schema.names, columns))
        for first in range(0, needed.num_rows, _ROWS):
            yield needed.slice(first, _ROWS), 0.0


def _selected(names: list[str], columns: frozenset[str]) -> list[str]:
    """The columns to read; all columns if the table has no known form, because the error message names them."""
    known = any(set(form.needs) <= set(names) for form in FORMS) or not columns <= KEYS
    return [name for name in names if name in columns or not known]


def saved_splits(folder: Path) -> dict[str, Path] | None:
    """{split: folder} of a data set written with save_to_disk ("" if it has no splits); None for other folders."""
    if (folder / "dataset_dict.json").is_file():
        return {place.parent.name: place.parent for place in sorted(folder.glob("*/state.json"))}
    return {"": folder} if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file() else None


def read_saved(
    folder: Path, at: Callable[[float], None] | None = None, columns: frozenset[str] = KEYS
) -> Iterator[Record]:
    """Yields the rows of one split of a memory-mapped data set written with save_to_disk. Raises Refused."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise Refused([Finding(str(folder), "", "needs the package 'datasets'", _WITHOUT)]) from error
    try:
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        why = f"is not a complete data set of save_to_disk ({error})"
        raise Refused([Finding(str(folder), "", why, "copy or write it again")]) from error
    yield from read_dataset(dataset, str(folder), at, columns)


def read_dataset(
    dataset: Any, name: str, at: Callable[[float], None] | None = None, columns: frozenset[str] = KEYS
) -> Iterator[Record]:
    """Yields the rows of a datasets.Dataset; `name` is its name in messages."""
    selected = dataset.select_columns(_selected(dataset.column_names, columns))
    number = 0
    for batch in selected.iter(_ROWS):
        for row in _rows(batch):
            number += 1
            yield Record(f"{name}, row {number}", row)
        if at:
            at(number / max(len(dataset), 1))


def _rows(batch: Mapping[str, list[object]]) -> Iterator[dict[str, object]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))
