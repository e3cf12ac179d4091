"""A Slurm cluster, an image and an ordinary user for the tests of this folder; `make test-containers` runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_USER, _UID = "alice", 12345
rows: list[str] = []
"""Of this test run: runtime, image's manners, result, seconds from start to first step; for docs/gpu.md."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for mark in (pytest.mark.slow, pytest.mark.slurm, pytest.mark.containers):
                item.add_marker(mark)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows:
        terminalreporter.write_sep("=", "containers")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def image() -> Path:
    folder = os.environ.get("LAUNCHER_TEST_IMAGE")
    if not folder:
        pytest.skip(
            "needs a root with Slurm and Apptainer and an image: run `make test-containers`, as root on a Debian"
        )
    return Path(folder)


@dataclass
class User:
    """An ordinary user at the login node: not root, so a container cannot write where the image belongs to root."""

    cluster: Cluster
    folder: Path
    """A folder of the user's on the shared disk."""
    path: str = ""
    """Folders in front of the PATH."""

    def run(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        env = {**self.cluster.env, "HOME": f"/home/{_USER}", "USER": _USER, "OMP_NUM_THREADS": "1"}
        env["PATH"] = f"{self.path}:{env['PATH']}" if self.path else env["PATH"]
        become = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", "--"]
        return subprocess.run(
            [*become, *words], cwd=self.folder, env=env, text=True, capture_output=True, timeout=timeout
        )


@pytest.fixture(scope="session")
def cluster(image: Path) -> Iterator[Cluster]:
    """Four nodes, for two trials of two nodes each at once."""
    with Cluster(nodes=4, gpus=0) as started:
        subprocess.run(["useradd", "--create-home", f"--uid={_UID}", _USER], check=True)
        Path("/root").chmod(0o711)  # the Python that runs may lie in it
        started.sacctmgr("add", "user", _USER, "Account=research", "QOS=normal,high", "DefaultAccount=research")
        yield started


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path) -> Iterator[User]:
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(0o755)
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, _UID, _UID)
    yield User(cluster, folder)
    cluster.run("scancel", f"--user={_USER}", check=False)
