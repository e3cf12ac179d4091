"""The kinds of files that rows come in: containers, compression, encodings; and what only looks like data."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs import containers
from tests.unit.prepare_tools import ROOT, Prepare, Refusal, many, record_of, rows_of, write

ROWS = [{"prompt": f'question {n}: ä, "b"; c?', "chosen": f"yes {n}", "rejected": "no\nnever"} for n in range(120)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def table(delimiter: str) -> bytes:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def arrow(stream: bool) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    rows, sink = pyarrow.Table.from_pylist(ROWS), pyarrow.BufferOutputStream()
    open_ = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with open_(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=50)
    return bytes(sink.getvalue().to_pybytes())


def parquet() -> bytes:
    pyarrow, tables = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pyarrow.BufferOutputStream()
    tables.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue().to_pybytes())


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "pairs.jsonl": lambda: lines(ROWS),
    "pairs.json": lambda: json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "one line.json": lambda: json.dumps(ROWS).encode(),
    "wrapped.json": lambda: json.dumps({"version": "1", "info": {"a": [1]}, "data": ROWS}, indent=1).encode(),
    "wrapped in a line.json": lambda: json.dumps({"data": ROWS}).encode(),
    "objects.json": lambda: "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
    "lines.json": lambda: lines(ROWS),
    "windows.jsonl": lambda: b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n"),
    "utf16.jsonl": lambda: lines(ROWS).decode().encode("utf-16"),
    "utf16.json": lambda: json.dumps(ROWS, indent=1, ensure_ascii=False).encode("utf-16"),
    "pairs.csv": lambda: table(","),
    "semicolons.csv": lambda: table(";"),
    "excel.csv": lambda: b"\xef\xbb\xbf" + table(","),
    "pairs.tsv": lambda: table("\t"),
    "pairs.parquet": parquet,
    "pairs.arrow": lambda: arrow(stream=False),
    "pairs.feather": lambda: arrow(stream=False),
    "stream.arrow": lambda: arrow(stream=True),
    "no name for it": lambda: lines(ROWS),
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_holds_the_same_rows(tmp_path: Path, name: str, packed: str) -> None:
    file = tmp_path / f"{name}{packed}"
    file.write_bytes(PACKERS[packed](CONTAINERS[name]()))
    shares: list[float] = []
    records = list(containers.read(file, shares.append))
    assert [dict(record.row or {}) for record in records] == ROWS
    assert all(0 <= share <= 1 for share in shares)


def test_a_folder_of_packed_files(prepare: Prepare, tmp_path: Path) -> None:
    source = tmp_path / "set"
    source.mkdir()
    (source / "train-00000-of-00001.json.bz2").write_bytes(bz2.compress(json.dumps(ROWS[:80]).encode()))
    (source / "test.csv").write_bytes(table(","))
    (source / "dataset_info.json").write_text('{"features": {}}')
    record = record_of(prepare(source))
    assert record["rows"]["train"] == 80
    assert record["rows_read"] == 200


def test_other_encodings_are_named_and_read_on_request(prepare: Prepare, refused: Refusal, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_bytes(lines(ROWS).decode().encode("latin-1"))
    message = refused(source)
    assert "is not UTF-8" in message
    assert "--encoding latin-1" in message
    assert "ä" in message  # what it would be
    table_ = tmp_path / "pairs.csv"
    table_.write_bytes(table(",").decode().encode("latin-1"))
    assert "--encoding latin-1" in refused(table_)
    assert "not an encoding that Python knows" in refused(source, "--encoding", "latin-0")
    assert "is not ASCII" in refused(source, "--encoding", "ascii")
    row = rows_of(prepare(source, "--encoding", "latin-1"), "train")[0]
    assert "ä" in row["prompt"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pairs.zip", b"PK\x03\x04rest", ["zip archive", "unpack"]),
        (
            "pairs.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            ["git-lfs pointer", "git lfs pull"],
        ),
        ("pairs.jsonl", b"<!DOCTYPE html>\n<html>", ["web page"]),
        ("pairs.json", b'[{"prompt": "q"}', ["array does not end"]),
        ("pairs.json", b'[{"prompt": "q"}, {"prompt": q}]', ["row 2", "is not JSON"]),
        ("pairs.json.xz", lzma.compress(b"[1, 2]" * 500)[:-20], ["xz data is cut off"]),
        ("pairs.jsonl.bz2", bz2.compress(b"{}\n" * 500)[:-10], ["bzip2 data is cut off"]),
        ("pairs.jsonl.gz", b"{}\n", ["is named .gz but is not gzip"]),
        ("pairs.csv", b'prompt,chosen,rejected\n"q"x,a,b\n', ["is not CSV"]),
        ("pairs.csv", b"prompt,chosen,rejected\nq,a,b,c\n", ["more cells than the header"]),
        ("pairs.csv", b"prompt,chosen,chosen,rejected\nq,a,b,c\n", ["column 'chosen' more than once"]),
        ("pairs.arrow", b"ARROW1\0\0nothing", ["is not a Parquet or Arrow file"]),
    ],
)
def test_what_is_no_data_is_named(
    refused: Refusal, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert all(word in message for word in words), message


def test_folders_of_the_hubs_cache_are_named(refused: Refusal, tmp_path: Path) -> None:
    state = tmp_path / "hub" / "datasets--owner--pairs" / "snapshots" / "abc"
    write(state / "train.jsonl", many(60))
    assert str(state) in refused(tmp_path / "hub" / "datasets--owner--pairs")
    assert "cache of the hub" in refused(tmp_path / "hub")


def peak_mb(source: Path, out: Path) -> float:
    """Peak memory of a run in a process of its own, which refuses or ends well.

    Not ru_maxrss: that counts what the process was before exec, a copy of this one, which may hold all of torch.
    """
    code = "import re, sys; from data_prep.prepare_data import main; main(sys.argv[1:]); "
    code += "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])"
    words = [sys.executable, "-c", code, str(source), "--out", str(out)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


@pytest.mark.parametrize("name", ["bomb.jsonl.gz", "bomb.json.gz", "bomb.csv.gz", "blank.json.gz"])
def test_memory_is_bounded_whatever_a_packed_file_holds(tmp_path: Path, name: str) -> None:
    starts = {"bomb.jsonl.gz": b'{"prompt": "', "bomb.json.gz": b'[{"prompt": "', "blank.json.gz": b"["}
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(starts.get(name, b"a,b\n"))
        for _ in range(600):
            file.write((b" " if name.startswith("blank") else b"x") * (1 << 20))  # 600 MiB in less than 3
    assert peak_mb(tmp_path / name, tmp_path / "out") < 450


def test_a_long_array_is_never_whole_in_memory(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n} {'x' * 5000}", "chosen": "yes", "rejected": "no"} for n in range(20_000)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))  # 100 MB
    (tmp_path / "few.json").write_text(json.dumps(rows[:400]))
    few = peak_mb(tmp_path / "few.json", tmp_path / "few")
    assert peak_mb(tmp_path / "pairs.json", tmp_path / "out") < few + 32
