"""launcher.whole_file.locked, also on a file system that has no flock (Lustre mounted without `-o flock`)."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import whole_file
from launcher.check import doctor


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def lock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A lock's path, on a disk with and without flock."""
    if not request.param:

        def missing(descriptor: object, operation: int) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", missing)
    return tmp_path / "lock"


def test_one_holder_at_a_time(lock: Path) -> None:
    assert not whole_file.is_locked(lock)
    with whole_file.locked(lock):
        assert whole_file.is_locked(lock)
        with pytest.raises(BlockingIOError), whole_file.locked(lock, wait=False):
            pass
        assert whole_file.is_locked(lock)  # who did not get it did not take it away
    assert not whole_file.is_locked(lock)
    with whole_file.locked(lock, wait=False):
        pass


def test_an_exception_gives_it_back(lock: Path) -> None:
    with pytest.raises(RuntimeError), whole_file.locked(lock):
        raise RuntimeError
    assert not whole_file.is_locked(lock)


def test_a_holder_that_was_killed_holds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = f"""
import errno, fcntl, os, signal
from pathlib import Path
from launcher import whole_file
def missing(*_):
    raise OSError(errno.ENOSYS, "")
fcntl.flock = missing
with whole_file.locked(Path({str(lock)!r})):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    held = lock.with_name("lock.held")
    assert held.exists()
    monkeypatch.setattr(whole_file, "_flock", lambda descriptor, operation: False)
    lock.touch()
    assert not whole_file.is_locked(lock)
    with whole_file.locked(lock, wait=False):
        assert whole_file.is_locked(lock)
    assert not held.exists()
    held.write_text("another-machine 1 2")  # whether that process lives cannot be known here
    with pytest.raises(BlockingIOError), whole_file.locked(lock, wait=False):
        pass


def test_doctor_says_where_there_is_none(lock: Path) -> None:
    (line,) = [line for line in doctor.runs_folder(lock.parent, many_nodes=False) if line.topic == "locks"]
    here = fcntl.flock.__name__ == "flock"
    assert line.state == (doctor.OK if here else doctor.WARNING) and ("-o flock" in line.remedy) is not here
