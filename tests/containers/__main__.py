"""Runs the container tests in a root with Slurm and Apptainer: `python -m tests.containers [pytest's arguments]`."""

from __future__ import annotations

import os
import signal
import sys

from tests.containers import image
from tests.roots.build import SUITES, CannotBuild, build
from tests.roots.enter import run


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder for /tmp is removed

    def progress(line: str) -> None:
        print("tests.containers:", line, file=sys.stderr, flush=True)

    try:
        root = build(SUITES["26.05"], progress)
        folder = image.build(progress)
    except CannotBuild as error:
        progress(f"cannot run here; it needs root, apt-get and Debian's packages: {error}")
        return 3
    os.environ["LAUNCHER_TEST_IMAGE"] = str(folder)
    return run(root, [sys.executable, "-m", "pytest", "tests/containers", *sys.argv[1:]], [folder])


if __name__ == "__main__":
    sys.exit(main())
