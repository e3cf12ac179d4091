"""A whole random Llama-3-8B: to a .nemo and back, each killed in the middle once; all tensors compared bit for bit.

    python -m tests.benchmarks.llama3_8b [--layers 32] [--work FOLDER]      # 34 GB of disk, some 20 minutes of 2 cores
    python -m tests.benchmarks.llama3_8b --only-make FOLDER                 # makes the Hugging Face folder alone, 16 GB

Prints seconds, peak memory and bytes of each step. Exit code 1 if a bar is missed, 3 if there is no room.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher import units
from tests.benchmarks.convert import CONVERTER, ROOT, measured, write_llama

SHARD_BYTES = 1_750_000_000
"""Gives ten files, the embedding and the output layer among them."""
NO_ROOM = 3
_MOST_GIB = 4.0
"""Bar on the memory of each step; the model has 15 GiB."""


def bytes_of(layers: int) -> int:
    return 2 * (layers * 218_112_000 + 2 * 128_256 * 4096)


def lacking(folder: Path, layers: int) -> str:
    """Why the whole cannot be run with `folder` for its files; "" if it can: two copies of the model at a time."""
    needed, free = 2 * bytes_of(layers) + (2 << 30), shutil.disk_usage(folder).free
    if free < needed:
        return f"needs {units.size(needed)} in {folder}, {units.size(free)} are free"
    return lacking_memory(_MOST_GIB)


def lacking_memory(gib: float) -> str:
    """Why something that takes `gib` of memory cannot be run now; "" if it can."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable:"))
    return f"needs {gib:g} GiB of memory, {free:.1f} are free" if free < gib else ""


def digests(folder: Path) -> dict[str, str]:
    """Each tensor's name, shape and type with the SHA-256 of its bytes; a few rows are in memory at a time."""
    from data_prep.models.hf_folder import read_header

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            for name, entry in read_header(file).items():
                begin, end = entry["data_offsets"]
                stream.seek(start + begin)
                digest = hashlib.sha256()
                while left := start + end - stream.tell():
                    digest.update(stream.read(min(left, 16 << 20)))
                found[f"{name} {entry['shape']} {entry['dtype']}"] = digest.hexdigest()
    return found


def kill_in_the_middle(command: Sequence[str], journal: Path, parts: int) -> int:
    """SIGKILL the command once its journal has `parts` lines; returns the bytes that it leaves in its folder."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= parts):
        time.sleep(0.02)
    if process.poll() is not None:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=process.communicate()[1])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return sum(path.stat().st_size for path in journal.parent.rglob("*") if path.is_file())


def there_and_back(work: Path, layers: int, say: Callable[[str], None] = print) -> bool:
    """Whether all bars hold. Files are in `work`, two copies of the model at a time at most."""
    hf, nemo, back = work / "llama3_8b", work / "llama3_8b_base", work / "back"
    began = time.monotonic()
    write_llama(hf, layers, SHARD_BYTES)
    shards = len(list(hf.glob("model-*.safetensors")))
    seconds = time.monotonic() - began
    say(f"{'random Hugging Face folder':32} {seconds:6.0f} s, {units.size(bytes_of(layers))}, {shards} files")
    expected, good = digests(hf), True
    steps = {
        "HF -> .nemo folder, proved": (["--folder", str(hf), str(nemo)], nemo, 1 + layers // 2),
        ".nemo folder -> HF": (["--to", "hf", str(nemo), str(back)], back, 1 + layers // 2),
    }
    for what, (words, out, parts) in steps.items():
        command = [sys.executable, CONVERTER, *words]
        journal = out.with_name(f".{out.name}.unfinished") / "journal.jsonl"
        kept = kill_in_the_middle(command, journal, parts)
        good &= not out.exists()
        run = measured(command)
        continued = "continues an interrupted conversion" in run.printed
        good &= continued and run.peak < _MOST_GIB * 2**30 and not journal.parent.exists()
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        say(
            f"{what:32} {run.seconds:6.0f} s after the kill, peak {run.peak / 2**30:.2f} GiB, {units.size(size)}, "
            f"{units.size(kept)} of them before the kill{'' if continued else '   DID NOT CONTINUE'}"
        )
        for line in run.printed.splitlines():
            if "continues an" in line or "proved on" in line:
                say(f"    {line}")
        if out == nemo:
            shutil.rmtree(hf)
    found = digests(back)
    same = sum(found.get(name) == digest for name, digest in expected.items())
    say(f"{same} of {len(expected)} tensors are the same, bit for bit; {len(found)} there")
    return good and same == len(expected) == len(found) == 9 * layers + 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.llama3_8b")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where there is room")
    parser.add_argument("--only-make", type=Path, metavar="FOLDER")
    args = parser.parse_args(arguments)
    if args.only_make:
        write_llama(args.only_make, args.layers, SHARD_BYTES)
        return 0
    if why := lacking(args.work, args.layers):
        print(why, file=sys.stderr)
        return NO_ROOM
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        return 0 if there_and_back(Path(scratch), args.layers, lambda text: print(text, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
