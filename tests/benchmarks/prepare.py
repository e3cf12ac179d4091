"""Preparing preference pairs: prepare_data.py and a straightforward datasets.map side by side, in one run.

    make bench        or        python -m tests.benchmarks.prepare [--rows 16000 160000] [--pairs FILE]

The rows are HH-RLHF's harmless-base test file (--pairs or HH_RLHF_FILE; else the project's own sample) over and over,
every repetition with a number of its own in the first question, so that none is a duplicate. Both sides count tokens,
check the border of prompt and response, drop, divide and write; their files are compared. The ratio is to the faster of
datasets.map's ways, the batched one. Times are those of the whole command, Python's start included; peak memory is that
of the process. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.pairs import splits
from tests.benchmarks.login_node import ROOT, high_water_mb

FASTER = 3.0  # times datasets.map's pairs a second, on the largest number of rows
MOST_MB = 400.0
MOST_GROWTH_MB = 32.0  # from the smallest to the largest number of rows
MOST_TOKENS = "4096"
SAMPLE = ROOT / "data_prep" / "sample" / "pairs.jsonl"


@dataclass(frozen=True)
class Run:
    """One command, from its start to its end."""

    name: str
    rows: int
    seconds: float
    peak_mb: float

    @property
    def pace(self) -> float:
        """Pairs a second."""
        return self.rows / self.seconds


def write_rows(source: Path, rows: int, to: Path) -> None:
    """`rows` rows of the source, over and over, each repetition with its number in the first question."""
    packed = source.read_bytes()
    text = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
    pairs = [json.loads(line) for line in text.splitlines()]
    with to.open("w") as file:
        for number in range(rows):
            repetition, at = divmod(number, len(pairs))
            mark = "\n\nHuman:"
            row = {side: pairs[at][side].replace(mark, f"{mark} ({repetition})", 1) for side in ("chosen", "rejected")}
            file.write(json.dumps(row) + "\n")


def unpack_tokenizer(nemo: Path, to: Path) -> Path:
    """The folder of the tokenizer inside a .nemo, as transformers reads it."""
    with tarfile.open(nemo) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).parent.name == "tokenizer":
                member.name = Path(member.name).name
                archive.extract(member, to, filter="data")
    return to


def run(name: str, rows: int, words: Sequence[str], folder: Path) -> Run:
    """One command to its end, with a sign of life every few seconds."""
    env = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        began = said = time.monotonic()
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        peak = 0.0
        while process.poll() is None:
            peak = high_water_mb(process.pid) or peak
            if time.monotonic() - said > 4:
                said = time.monotonic()
                print(f"    {name}, {rows:,} rows: {said - began:.0f} s", file=sys.stderr, flush=True)
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError((folder / "log").read_text()[-2000:])
    return Run(name, rows, time.monotonic() - began, peak)


def same(one: Path, other: Path) -> bool:
    """Whether the two folders hold the same rows in the same order."""
    return all(rows == others for rows, others in zip(_rows(one), _rows(other), strict=True))


def _rows(folder: Path) -> Iterator[object]:
    for name in splits.NAMES:
        yield name
        with (folder / f"{name}.jsonl").open("rb") as lines:
            yield from map(json.loads, lines)


def measure(source: Path, nemo: Path, sizes: Sequence[int], row_by_row: bool, folder: Path) -> list[Run]:
    """datasets.map on the most rows, then prepare_data.py on each number of rows, the most last.

    Raises RuntimeError where the two did not write the same rows.
    """
    tokenizer = str(unpack_tokenizer(nemo, folder / "tokenizer"))
    for number in sizes:
        write_rows(source, number, folder / f"{number}.jsonl")
    most, theirs, ours = folder / f"{sizes[-1]}.jsonl", [], []
    for how in ["--batched", *(["--row-by-row"] if row_by_row else [])]:
        words = ["-m", "tests.benchmarks.datasets_map", str(most), tokenizer, str(folder / how), MOST_TOKENS, how]
        theirs.append(run(f"datasets.map {how}", sizes[-1], words, folder))
    for number in sizes:
        words = ["data_prep/prepare_data.py", str(folder / f"{number}.jsonl"), "--tokenizer", tokenizer]
        words += ["--max-tokens", MOST_TOKENS, "--out", str(folder / "ours"), "--force"]
        ours.append(run("prepare_data.py", number, words, folder))
    if not same(folder / "ours", folder / "--batched"):
        raise RuntimeError("the two sides did not write the same rows")
    return [*theirs, *ours]


def table(runs: Sequence[Run]) -> str:
    """The first run is what the others are compared with."""
    lines = [f"{'':28}{'rows':>9}{'seconds':>9}{'pairs/s':>9}{'ratio':>8}{'peak MB':>9}"]
    for one in runs:
        ratio = one.pace / runs[0].pace
        lines.append(f"{one.name:28}{one.rows:9,}{one.seconds:9.1f}{one.pace:9,.0f}{ratio:7.1f}x{one.peak_mb:9.0f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    named = os.environ.get("HH_RLHF_FILE")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prepare", description=main.__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[16_000, 160_000], help="default 16000 160000")
    parser.add_argument("--pairs", type=Path, default=Path(named) if named else SAMPLE, help="a .jsonl or .jsonl.gz")
    parser.add_argument("--row-by-row", action="store_true", help="measure datasets.map without batches too")
    parser.add_argument("--nemo", type=Path, default=ROOT / "models" / "smollm2_135m.nemo", help="whose tokenizer")
    args = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}, Python {sys.version.split()[0]}, {args.pairs.name}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        runs = measure(args.pairs, args.nemo, sorted(args.rows), args.row_by_row, Path(name))
    print(table(runs))
    ours = [one for one in runs if one.name == "prepare_data.py"]
    faster, peak = ours[-1].pace / runs[0].pace, max(one.peak_mb for one in ours)
    growth = ours[-1].peak_mb - ours[0].peak_mb
    checks = [
        (f"pairs a second, {ours[-1].rows:,} rows", f"{faster:.1f}x", f">= {FASTER:g}x", faster >= FASTER),
        ("peak memory", f"{peak:.0f} MB", f"< {MOST_MB:g} MB", peak < MOST_MB),
        (
            f"more of it than for {ours[0].rows:,}",
            f"{growth:.0f} MB",
            f"< {MOST_GROWTH_MB:g} MB",
            growth < MOST_GROWTH_MB,
        ),
    ]
    for what, figure, bar, good in checks:
        print(f"{what:32} {figure:>12}   bar {bar}{'' if good else '   MISSED'}")
    return 0 if all(good for *_, good in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
