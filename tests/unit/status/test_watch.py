"""Watching: how often Slurm is asked, what is shown while it is away, the picture, the keys."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
from rich.console import Console

from launcher.slurm import client
from launcher.status import states
from launcher.status import watcher as watching
from launcher.status.answers import Answers
from launcher.status.live import LineView
from launcher.status.losses import ASCII, BLOCKS, Losses, sparkline
from launcher.status.screen import draw
from launcher.status.trial_state import Look
from launcher.status.watcher import Watcher
from launcher.sweep.folder import Sweep
from tests.unit.local.test_local_states import local
from tests.unit.status.test_states import answers, done, log, make, queued

ROOT = Path(__file__).resolve().parents[3]


class Clock:
    """time.monotonic and time.time under a test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watching.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watching.time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    yield Clock(monkeypatch)
    client.count.clear()


class Slurm:
    """Answers as it is told, and counts as the real one does."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked, self.troubles = clock, 0, ()

    def __call__(self, sweep: Sweep) -> Answers:
        self.asked += 1
        client.count.update(["squeue", "sacct"])
        if self.troubles:
            return Answers(self.clock.now, None, None, self.troubles)
        return Answers(self.clock.now, {row.name: row for row in [queued(0, "RUNNING"), queued(1, "PENDING")]}, {})


def watched(watcher: Watcher, clock: Clock, seconds: float) -> Look:
    for _ in range(int(seconds)):
        clock.now += 1
        look = watcher.look()
        if watcher._thread:
            watcher._thread.join()
    return look


def test_fewer_than_five_commands_a_minute(tmp_path: Path, clock: Clock) -> None:
    ask = Slurm(clock)
    watcher = Watcher(make(tmp_path / "s", 2), ask)
    watcher.first()
    watched(watcher, clock, 600)
    assert 19 <= ask.asked <= 21, "two commands each half minute"
    for _ in range(60):
        watcher.ask_soon()
        watched(watcher, clock, 1)
    assert ask.asked <= 23, "actions do not break the budget"


def test_while_slurm_is_away_the_old_answer_is_shown_with_its_age(tmp_path: Path, clock: Clock) -> None:
    ask = Slurm(clock)
    sweep = make(tmp_path / "s", 2)
    watcher = Watcher(sweep, ask)
    watcher.first()
    ask.troubles = ("squeue does not answer",)
    look = watched(watcher, clock, 600)
    assert ask.asked <= 6, "it is asked ever more seldom"
    assert [state.state for state in look.trials] == ["RUNNING", "WAITING"] and 590 <= watcher.age <= 600
    assert look.answers.troubles
    done(sweep, 0)
    look = watched(watcher, clock, 1)
    assert [state.state for state in look.trials] == ["DONE", "WAITING"], "the folder needs no Slurm"
    console = Console(width=80, height=20, file=io.StringIO())
    console.print(draw(look, Losses(), console, age=watcher.age))
    assert "Slurm's last answer is 10:01 old" in console.file.getvalue()  # type: ignore[attr-defined]
    ask.troubles = ()
    look = watched(watcher, clock, 300)
    assert not look.answers.troubles and watcher.age <= 31


def test_a_slow_answer_does_not_stop_the_view(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(sweep: Sweep) -> Answers:
        if slurm_asked:
            go.wait(20)
        slurm_asked.append(1)
        return answers([queued(0, "RUNNING")])

    slurm_asked: list[int] = []
    watcher = Watcher(make(tmp_path / "s", 1), slow)
    watcher.first()
    watcher._due = 0.0
    assert watcher.look().trials[0].state == watcher.look().trials[0].state == "RUNNING"
    assert watcher._thread and watcher._thread.is_alive(), "nobody waited for the answer"
    go.set()
    watcher._thread.join(5)


def test_a_retry_from_another_shell_is_noticed(tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path / "s", 2)
    watcher = Watcher(sweep, Slurm(clock))
    watcher.first()
    (sweep.folder / "slurm" / "1.id").write_text("70\n")
    Sweep.load(sweep.folder).record_job("slurm", "", [1], script="1.sbatch", name="tune")
    os.utime(sweep.folder / "sweep.json", (1, 1))
    assert len(watcher.look().sweep.jobs) == 2


def test_lines(tmp_path: Path, clock: Clock) -> None:
    sweep = make(tmp_path / "s", 3)
    out = io.StringIO()
    view = LineView(sweep.trials, out, every=60.0)

    def lines(look: Look, age: float) -> None:
        view(look.trials, look.answers.troubles, age)

    rows = [queued(0, "RUNNING", nodes="node1"), queued(1, "PENDING", reason="Priority")]
    lines(states.join(sweep, answers([*rows, queued(2, "RUNNING")])), 0)
    lines(states.join(sweep, answers([*rows, queued(2, "RUNNING")])), 0)
    log(sweep, 2, "ValueError: x\n")
    lines(states.join(sweep, answers([*rows, queued(2, "FAILED")], [])), 0)
    done(sweep, 0)
    clock.now += 100
    lines(states.join(sweep, answers([queued(1, "RUNNING"), queued(2, "FAILED")], [], ("sacct is away",))), 99)
    text = re.sub(r"^\S+ ", "", out.getvalue(), flags=re.MULTILINE)
    assert text.splitlines() == [
        "trial 0 (beta 0) lr=0 running on node1",
        "trial 2 (beta 0.2) lr=2 running",
        "2 running, 1 waiting",
        "trial 2 (beta 0.2) lr=2 failed: ValueError: x; ended with another exit code than 0",
        "! sacct is away",
        "trial 0 (beta 0) lr=0 done after 12 s",
        "trial 1 (beta 0.1) lr=1 running",
        "! Slurm's last answer is 1:39 old",
        "#1 starting",
    ]


def test_losses_are_read_as_they_come(tmp_path: Path) -> None:
    losses, path = Losses(), tmp_path / "metrics.jsonl"
    assert losses.of(tmp_path) == []

    def write(text: str) -> list[float]:
        with path.open("a") as file:
            file.write(text)
        return losses.of(tmp_path)

    lines = [json.dumps({"time": 1.0, "step": step, "train/loss": 1.0 - step / 10}) + "\n" for step in range(4)]
    assert write(lines[0] + lines[1][:9]) == [1.0]
    assert write(lines[1][9:]) == [1.0, 0.9]
    assert write('{"time": 1, "phase": "starting"}\n' + '{"step": 1, "train/loss"\n' + lines[2]) == [1.0, 0.9, 0.8]
    assert write('{"step": 1, "train/loss": 0.5}\n') == [1.0, 0.5, 0.8], "a restart does a step again"
    assert math.isnan(write('{"step": 3, "train/loss": null}\n')[-1])


def test_sparkline() -> None:
    assert sparkline([], 8) == "" and sparkline([1.0], 8) == "▁" and sparkline([2, 2, 2], 8) == "▁▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == BLOCKS and sparkline(range(80), 8) == BLOCKS
    assert sparkline([0.0, math.nan, 1.0], 8, ASCII) == "_x#" and sparkline([math.nan], 3) == "x"
    assert len(sparkline(range(1000), 7)) == 7


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 8), (160, 50), (60, 10)])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_picture_fits(tmp_path: Path, width: int, height: int, encoding: str) -> None:
    sweep = make(tmp_path / "s" / ("long" * 30), 30)
    rows = [queued(0, "RUNNING", nodes="node[1-2]", elapsed=60.0), *(queued(n, "PENDING") for n in range(1, 30))]
    log(sweep, 0)
    lines = [{"time": time.time(), "step": n, "max_steps": 900, "train/loss": 1 / (n + 1)} for n in range(100)]
    (sweep.folder / "0" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    look = states.join(sweep, answers(rows, troubles=("squeue is away " * 10,)))
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(width=width, height=height, file=raw, no_color=True, force_terminal=False)
    for selected in (0, 29):
        console.print(draw(look, Losses(), console, age=70.0, selected=selected, message="x" * 200))
    raw.flush()
    text = raw.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    shown = text.splitlines()
    assert max(map(len, shown)) <= width and len(shown) <= 2 * height and "\x1b" not in text
    assert "99/900" in text and "Slurm's last answer is 1:10 old" in text.replace("?", "'")
    assert (BLOCKS[-1] in text) == (encoding == "utf-8")


def test_on_a_terminal(tmp_path: Path) -> None:
    """A real pseudo-terminal of 80 columns: the picture comes, keys act, q leaves it as it was."""
    sweep = local(tmp_path / "s", os.getpid())
    log(sweep, 0, "what rank 0 says\n", "local1")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm", "PAGER": "cat", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": ""}
        os.execv(sys.executable, [sys.executable, "-m", "launcher", "watch", str(sweep.folder)])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen = b""

    def until(words: bytes, seconds: float = 30) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while words not in seen:
            assert time.monotonic() < end, (words, seen[-3000:])
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 65536)

    try:
        until(b"q quit")
        os.write(terminal, b"c")
        until(b"cancel trial 0 (beta 0)? y yes")
        os.write(terminal, b"n")
        until(b"cancel: not done")
        os.write(terminal, b"\x1b[B")
        until(b"waits for the trials before it")
        os.write(terminal, b"r")
        until(b"nothing to retry")
        os.write(terminal, b"kl")
        seen = b""
        os.write(terminal, b"k")
        time.sleep(0.6)
        os.write(terminal, b"l")
        until(b"what rank 0 says")
        os.write(terminal, b"q")
        _, code = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(code) == 3
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def test_piped_it_ends_with_the_trials(tmp_path: Path) -> None:
    sweep = local(tmp_path / "s", os.getpid())
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launcher", "watch", str(sweep.folder)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as watch:
        assert watch.stdout and "2 waiting" in watch.stdout.readline()
        done(sweep, 0), done(sweep, 1)
        rest = watch.stdout.read()
        assert watch.wait(20) == 0
    assert [line.split(" ", 1)[1] for line in rest.splitlines()] == [
        "trial 0 (beta 0) lr=0 done after 12 s",
        "trial 1 (beta 0.1) lr=1 done after 12 s",
    ]
