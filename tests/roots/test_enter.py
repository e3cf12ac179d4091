"""A command in a root sees the root and this clone, and nothing of it stays on the machine, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.roots.enter import ROOT, run
from tests.slurm.daemon import Pid, wait_until

_CAN = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "true"]
pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or subprocess.run(_CAN, capture_output=True).returncode != 0,
    reason="needs root, and namespaces that may be made",
)
#: This machine's own root serves as well as one that took two minutes to build.
HERE = Path("/")
RUN = "import sys; from tests.roots.enter import *; sys.exit(run(Path('/'), sys.argv[1:]))"


def test_a_root_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    before = Path("/proc/self/mounts").read_text()
    (tmp_path / "outside").touch()
    script = f"""
    test ! -e {tmp_path}/outside # /tmp is another one
    touch /made-in-a-root /tmp/made-in-a-root
    test -e tests/roots/enter.py
    {sys.executable} -c 'import yaml'
    test $(ls -d /proc/[0-9]* | wc -l) -lt 10
    exit 7
    """
    assert run(HERE, ["bash", "-euxc", script]) == 7
    assert not Path("/made-in-a-root").exists() and not Path("/tmp/made-in-a-root").exists()
    assert Path("/proc/self/mounts").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_after_a_kill(number: signal.Signals, tmp_path: Path) -> None:
    before = Path("/proc/self/mounts").read_text()
    sleep = f"600.{os.getpid()}"
    command = [sys.executable, "-c", RUN, "bash", "-c", f"echo up; setsid sleep {sleep} & sleep 600"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # after SIGKILL nobody is left to remove the folder in it
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        assert wait_until(lambda: bool(_processes(sleep)), 10)
        (left,) = _processes(sleep)
        process.send_signal(number)
        process.wait(10)
        assert wait_until(lambda: not left.alive(), 10), "a process of the root lives on"
    assert Path("/proc/self/mounts").read_text() == before


def _processes(text: str) -> list[Pid]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == f"sleep\0{text}\0".encode():
                found.append(Pid(int(folder.name)))
        except OSError:
            continue
    return found
