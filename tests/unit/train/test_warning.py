"""launcher.train.signals, .watchdog and .ownership: how a rank ends by itself, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.train.watchdog import FACTOR, FIRST, LEAST, Watchdog

REPOSITORY = Path(__file__).resolve().parents[3]

LISTEN = """
import signal, sys, time, threading
from pathlib import Path
from launcher.train import signals as warning
warning.LINGER = 0.2
listener = warning.listen(Path(sys.argv[1]), (signal.SIGUSR2, signal.SIGTERM))
print("listening", flush=True)
"""
BLOCKED = LISTEN + "threading.Lock().acquire(); lock = threading.Lock(); lock.acquire(); lock.acquire()"
KEPT = (
    LISTEN
    + """
listener.keep()
print("training", flush=True)
while not listener.heard:
    time.sleep(0.01)
time.sleep(1.5)
print("kept", listener.heard, flush=True)
listener.leave()
print("never", flush=True)
"""
)
HANGS = """
import sys, time
from pathlib import Path
from launcher.train import watchdog
from launcher.train.metrics_file import MetricsFile
watchdog.LEAST, watchdog._LINGER, watchdog._POLL = 1.0, 0.1, 0.1
trial = Path(sys.argv[1])
progress = MetricsFile(trial / "metrics.jsonl")
watchdog.start(trial, 3, progress)
progress.phase("training")
progress.values(1, 9, {"train/loss": 0.5})
def waits_for_ever():
    time.sleep(600)
waits_for_ever()
"""
ORPHAN = """
import sys, time
from pathlib import Path
from launcher.train import watchdog
from launcher.train.metrics_file import MetricsFile
watchdog._POLL = watchdog._FENCE_POLL = 0.1
watchdog.start(Path(sys.argv[1]), 1, MetricsFile(None))
print("running", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def make(code: str, rank: int = 0) -> subprocess.Popen[str]:
        env = {**os.environ, "TRIAL_ATTEMPT": "5.1", "RANK": str(rank), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", code, str(tmp_path)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    (tmp_path / "log").mkdir()
    yield make
    for process in started:
        process.kill()
        process.communicate()


def note(trial: Path) -> dict:
    return json.loads((trial / "log" / "5.1_stopped.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_with_nothing_to_save_it_leaves_whatever_it_waits_for(start, tmp_path, number):
    process = start(BLOCKED)
    assert process.stdout.readline() == "listening\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert note(tmp_path)["reason"] == f"signal {number.name}"
    assert note(tmp_path)["step"] == 0
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["phase"] == "stopped"


def test_the_other_ranks_leave_with_it(start, tmp_path):
    first, second = start(BLOCKED, rank=0), start(BLOCKED, rank=1)
    for process in (first, second):
        assert process.stdout.readline() == "listening\n"
    second.send_signal(signal.SIGUSR2)
    for process in (first, second):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "stopped: signal SIGUSR2" in said


def test_with_something_to_save_it_is_kept(start, tmp_path):
    process = start(KEPT)
    assert process.stdout.readline() == "listening\n"
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert f"kept {int(signal.SIGUSR2)}\n" in said
    assert "never" not in said
    assert note(tmp_path)["reason"] == "signal SIGUSR2"


def test_a_hang_is_told(start, tmp_path):
    process = start(HANGS)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == os.EX_TEMPFAIL, said
    assert "waits_for_ever" in said
    error = json.loads((tmp_path / "log" / "5.1_3_error.json").read_text())
    assert error["type"] == "Hung"
    assert "phase 'training'" in error["message"]


def test_an_orphan_leaves(start, tmp_path):
    (tmp_path / "log" / "current").write_text("5.1\n")
    process = start(ORPHAN)
    assert process.stdout.readline() == "running\n"
    assert process.poll() is None
    (tmp_path / "log" / "current").write_text("5.2\n")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 77
    assert said == "start 5.2 has taken over; this one leaves\n"


def test_how_long_a_silence_may_be(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("launcher.train.watchdog.time.monotonic", lambda: now[0])
    measured, told = Watchdog(), Watchdog(hang_after=20.0)

    def after(seconds: float, phase: str, step_done: bool = False) -> None:
        now[0] += seconds
        for dog in (measured, told):
            dog.alive(phase, step_done)

    after(0, "loading model")
    after(100, "training")
    assert (measured.bound(), told.bound()) == (FIRST, FIRST)
    after(45, "training")
    after(50, "training", step_done=True)
    assert (measured.bound(), told.bound()) == (FACTOR * 50, 20)
    after(1, "saving")
    assert measured.bound() == FIRST
    after(2, "training")
    after(1, "saving")
    assert measured.bound() == LEAST
    now[0] += 30
    assert measured.silence() == 30
    measured.suspended(25)
    assert measured.silence() == 5
