"""Odd surroundings end in words, never in a traceback: closed streams, full disks, deleted folders, odd names."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.slurm import client
from launcher.slurm.run import Answer, SlurmError
from launcher.status import states
from launcher.status.table import table
from tests.unit.status.test_states import make

ROOT = Path(__file__).resolve().parents[3]
LAUNCHER = f"{shlex.quote(sys.executable)} -m launcher"


def shell(folder: Path, command: str) -> tuple[int, str]:
    """(exit code, what was printed) of a command line of bash."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=120
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["status", "cancel -y"])
def test_closed_streams(tmp_path: Path, closed: str, command: str) -> None:
    sweep = make(tmp_path / "s", array=None)
    code, _ = shell(tmp_path, f"{LAUNCHER} {command} {sweep.folder} {closed}")
    assert code == (1 if command == "status" else 0)


@pytest.mark.parametrize("command", ["status", "report", "sweep cluster=local model=tiny"])
def test_a_deleted_folder(tmp_path: Path, command: str) -> None:
    (tmp_path / "gone").mkdir()
    code, said = shell(tmp_path / "gone", f"rmdir {tmp_path}/gone; {LAUNCHER} {command}")
    assert code == 2 and "current folder: was deleted" in said


def test_a_full_disk_behind_the_output(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", array=None)
    code, said = shell(tmp_path, f"{LAUNCHER} status {sweep.folder} >/dev/full")
    assert code == 1 and "No space left" in said


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (
            "sweep cluster=local model=tiny experiment.name=$(printf 'x%.0s' {1..300})",
            "a name of 300 bytes is too long",
        ),
        ("sweep cluster=local model=tiny", "not UTF-8"),
    ],
)
def test_names_that_no_folder_can_have(tmp_path: Path, command: str, why: str) -> None:
    (odd := tmp_path / os.fsdecode(b"\xff")).mkdir()
    code, said = shell(odd if why == "not UTF-8" else tmp_path, f"{LAUNCHER} {command}")
    assert code == 2 and why in said and "nothing was started" in said, said
    assert list(tmp_path.iterdir()) == [odd] and list(odd.iterdir()) == []


def test_an_answer_that_cannot_be_read_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*ids: object, **how: object) -> list[object]:
        raise SlurmError(
            Answer(("squeue", "-r"), 0, "garbage", "", 0.1), "cannot read its answer: ValueError('13 fields')"
        )

    monkeypatch.setattr(client, "squeue", odd)
    monkeypatch.setattr(client, "sacct", odd)
    look = states.look(make(tmp_path / "s"))
    assert [state.state for state in look.trials] == ["UNKNOWN"] * 3
    assert "13 fields" in look.answers.troubles[0] and "does not answer" not in look.answers.troubles[0]
    assert "13 fields" in " ".join(table(look).split())
