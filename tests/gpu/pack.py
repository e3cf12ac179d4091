"""Packs what day_one.py needs into a folder of at most 60 MB, for a GPU machine without a network.

    python tests/gpu/pack.py FOLDER [--python 3.12]

The machine has to have torch and what comes with it, see packages.txt; the folder gets the rest (packages.tar.xz), this
repository (code.tar.xz) and run.sh. Packages without compiled parts are copied from this environment; the others are
downloaded by pip for the Python version asked for.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MOST_BYTES = 60 << 20
#: Of megatron-core only the indexing of pretraining data is compiled, which DPO does not use; it has no wheels.
COPIED = ("megatron-core",)
RUN = """\
#!/bin/bash
# run.sh [OPTIONS of day_one.py]: unpacks the packages and the code beside this file, and runs all parts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${DAY_ONE_WORK:-$(mktemp -d)}
mkdir -p "$work"
tar -xJf "$here/packages.tar.xz" -C "$work"
tar -xJf "$here/code.tar.xz" -C "$work"
export PYTHONPATH="$work/packages:$work/code" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$work/code"
exec "${PYTHON:-python3}" tests/gpu/day_one.py --work "$work/trials" "$@"
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the GPU machine's Python (default 3.12)")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        packages = Path(scratch, "packages")
        collect(packages, args.python)
        _tar(args.folder / "packages.tar.xz", packages, "packages")
        code = Path(scratch, "code.tar")
        subprocess.run(["git", "archive", "--prefix=code/", "-o", str(code), "HEAD"], cwd=REPOSITORY, check=True)
        subprocess.run(["xz", "-T0", "-2", "-f", str(code)], check=True)
        shutil.copyfile(f"{code}.xz", args.folder / "code.tar.xz")
    run = args.folder / "run.sh"
    run.write_text(RUN)
    run.chmod(0o755)
    size = sum(path.stat().st_size for path in args.folder.iterdir())
    print(f"{args.folder}: {size / 2**20:.1f} MiB of at most {MOST_BYTES >> 20}")
    return 0 if size <= MOST_BYTES else 1


def collect(into: Path, python: str) -> None:
    """Put the packages of packages.txt that are installed here into the folder `into`."""
    into.mkdir()
    compiled = []
    for name in _names():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not needed with these versions
        files = [file for file in found.files or [] if ".." not in file.parts and "__pycache__" not in file.parts]
        if name not in COPIED and any(file.suffix == ".so" for file in files):
            compiled.append(f"{name}=={found.version}")
            continue
        for file in files:
            if file.suffix != ".so" and _wanted(Path(str(file))):
                target = into / str(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(found.locate_file(file)), target)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_5_x86_64", "--platform=manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation=cp", *platforms, "--target", str(into), *compiled]
    subprocess.run(command, check=True)
    for file in list(into.rglob("*")):
        if file.is_file() and not _wanted(file.relative_to(into)):
            file.unlink()


def _names() -> list[str]:
    lines = Path(__file__).with_name("packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _wanted(file: Path) -> bool:
    """Leaves out tests, type stubs and jieba's dictionary (25 MB), which nothing here reads."""
    if file.parts[0] == "jieba":
        return file.suffix == ".py"
    return not ({"tests", "test"} & set(file.parts[1:-1]) or file.suffix in (".pyi", ".a", ".c", ".pyx"))


def _tar(to: Path, folder: Path, name: str) -> None:
    with tarfile.open(to, "w:xz", preset=2) as archive:
        archive.add(folder, arcname=name)


if __name__ == "__main__":
    sys.exit(main())
