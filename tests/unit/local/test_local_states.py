"""What a trial's state is said to be that this machine runs, or ran, without Slurm."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.findings import Refused
from launcher.status import local_states, states
from launcher.status.trial_state import TrialState
from launcher.submit import actions
from launcher.sweep.folder import Sweep
from tests.unit.status.test_states import done, log, make


def local(folder: Path, pid: int, host: str = "") -> Sweep:
    sweep = make(folder, 2, array=None)
    sweep.record_job("local", f"{host or socket.gethostname()}:{pid}", [0, 1])
    return sweep


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def exits(sweep: Sweep, *codes: int, ended: tuple[int, ...] = ()) -> None:
    notes = [
        {"rank": rank, "code": code, "time": 5.0 - rank, "ended_by_launcher": rank in ended}
        for rank, code in enumerate(codes)
    ]
    log(sweep, 0, "hello\n", "local1")
    (sweep.folder / "0" / "log" / "local1_exit.json").write_text(json.dumps(notes))


def test_a_held_lock_is_a_running_trial(tmp_path: Path) -> None:
    sweep = local(tmp_path / "s", dead_pid())
    log(sweep, 0, "", "local1")
    with (sweep.folder / "0" / "log" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states.look(sweep).trials[0].state == "RUNNING"
        assert local_states.holder(sweep.folder / "0" / "log" / "lock") in (os.getpid(), None)
    assert states.look(sweep).trials[0].state == "FAILED"


@pytest.mark.parametrize(
    ("codes", "ended", "state", "reason", "code"),
    [
        ((-15, -15), (), "CANCELLED", "stopped while it ran", ""),
        ((3, -15), (1,), "FAILED", "rank 0: exit code 3", "3:0"),
        ((-15, -11), (0,), "FAILED", "rank 1: killed by SIGSEGV", "0:11"),
        ((0, 0), (), "FAILED", "all ranks exited with 0, but left no result.json", "0:0"),
    ],
)
def test_how_a_local_trial_ended(
    tmp_path: Path, codes: tuple[int, ...], ended: tuple[int, ...], state: str, reason: str, code: str
) -> None:
    sweep = local(tmp_path / "s", dead_pid())
    exits(sweep, *codes, ended=ended)
    look = states.look(sweep)
    assert (look.trials[0].state, look.trials[0].reason, look.trials[0].exit_code) == (state, reason, code)
    assert (look.trials[1].state, look.trials[1].reason) == ("CANCELLED", "its launcher ended before it started")
    assert not look.answers.troubles and look.exit_code == 1


def test_a_local_launcher_that_lives(tmp_path: Path) -> None:
    sweep = local(tmp_path / "s", os.getpid())
    assert [state.state for state in states.look(sweep).trials] == ["WAITING", "WAITING"]
    log(sweep, 0, "", "local1")
    assert states.look(sweep).trials[0].state == "RUNNING"
    assert not local_states.alive(os.getpid(), time.time() - 10**7), "a younger process of the same number"


def test_another_hosts_launcher_is_not_judged(tmp_path: Path) -> None:
    sweep = local(tmp_path / "s", 1, host="elsewhere")
    log(sweep, 0, "", "local1")
    look = states.look(sweep)
    assert [state.state for state in look.trials] == ["UNKNOWN", "UNKNOWN"] and look.exit_code == 3
    with pytest.raises(Refused, match="cancel it on elsewhere"):
        actions.cancel(look, look.trials)


def test_a_local_sweep_is_cancelled_by_its_launcher(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sweep = local(tmp_path / "s", launcher.pid)
    look = states.look(sweep)
    with pytest.raises(Refused, match="would still start it"):
        actions.cancel(look, look.trials[:1])
    assert main(["cancel", str(sweep.folder)]) == 0
    assert launcher.wait(10) == -15
    assert [state.state for state in states.look(sweep).trials] == ["CANCELLED", "CANCELLED"]


def test_a_local_sweep_is_run_on_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.local import run as runner

    sweep = local(tmp_path / "s", dead_pid())
    exits(sweep, 3)
    done(sweep, 1)
    told: list[list[int]] = []

    def run(sweep: Sweep, trials: list[Any], **how: Any) -> list[TrialState]:
        told.append([trial.number for trial in trials])
        return [TrialState(trial=trial, state="FAILED", error="again") for trial in trials]

    monkeypatch.setattr(runner, "run", run)
    assert main(["retry", "--failed", str(sweep.folder)]) == 1 and told == [[0]]
