"""The live view: a picture on a terminal, plain lines elsewhere, never silent and never a flood."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.status import live
from launcher.status.live import LineView, TableView, live_view
from launcher.status.rows import cell, phase
from launcher.status.trial_state import TrialState
from launcher.sweep.folder import Sweep
from launcher.sweep.metrics import TrialProgress
from launcher.sweep.trial import Trial


def trials(tmp_path: Path, count: int = 2, *more: str) -> list[Trial]:
    configs = [
        ([f"++model.dpo.ref_policy_kl_penalty={0.1 * (n + 1)}", f"++a={more[n] if more else 0}"],
         {"model": {"dpo": {"ref_policy_kl_penalty": 0.1 * (n + 1)}}})
        for n in range(count)
    ]  # fmt: skip
    return Sweep.create(tmp_path / "s", command=[], experiment={}, trials=configs).trials


def states(trials: list[Trial], *names: Any, **more: Any) -> list[TrialState]:
    """The trials' states; where trials run, their logs are known."""
    return [
        TrialState(trial=trial, state=name, log=None if name == "WAITING" else Path("/l"), **more)
        for trial, name in zip(trials, names, strict=True)
    ]


def write(trial: Trial, *lines: dict[str, Any]) -> None:
    with (trial.folder / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"time": time.time(), **line}) + "\n" for line in lines)


def training(step: int, steps: int = 24, **more: Any) -> dict[str, Any]:
    return {"step": step, "max_steps": steps, "train/loss": 0.61234, "train/acc": 0.75, **more}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    yield now


def test_plain_lines_say_every_change_and_a_sign_of_life(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    both = trials(tmp_path)
    lines = live_view(both, stream)
    assert isinstance(lines, LineView)
    now = states(both, "RUNNING", "RUNNING")
    write(both[0], {"phase": "loading model", "detail": "tiny.nemo"})
    silences, last = [], clock[0]
    with lines:
        for turn in range(300):  # 30 s, ten calls a second
            if turn == 50:
                write(both[0], {"phase": "training"}, training(1))
            if turn == 100:
                write(both[0], {"step": 1, "val/loss": 0.65, "val/acc": 0.6})
            before = stream.tell()
            lines(now)
            if stream.tell() > before:
                silences.append(clock[0] - last)
                last = clock[0]
            clock[0] += 0.1
        now[1] = replace(now[1], state="FAILED", error="ValueError: no", elapsed=30.0)
        now[0] = replace(now[0], state="DONE", elapsed=31.0)
        lines(now)
    text = stream.getvalue()
    assert max(silences) <= 5.0 and len(text.splitlines()) <= 15
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 80
    assert re.search(r"^[0-9:]{8} trial 0 \(beta 0.1\) running, log /l$", text, re.MULTILINE)
    assert "#0 loading model 0 s, tiny.nemo | #1 starting" in text
    assert "#0 1/24 loss 0.612 acc 0.75 | #1 starting" in text
    assert text.count("trial 0 (beta 0.1) step 1: validation loss 0.6500, accuracy 0.600") == 1
    assert (
        "trial 0 (beta 0.1) done after 31 s" in text and "trial 1 (beta 0.2) failed after 30 s: ValueError: no" in text
    )


def test_many_trials_are_counted_instead_of_named(tmp_path: Path) -> None:
    many = trials(tmp_path, 30)
    for n, trial in enumerate(many[:20]):
        write(trial, {"phase": "training"}, training(n + 1))
    stream = io.StringIO()
    lines = LineView(many, stream)
    now = states(many, *["RUNNING"] * 20, *["WAITING"] * 10)
    lines.seen = {state.trial.number: (state.state, "", "", "0") for state in now}
    lines(now)
    assert stream.getvalue()[8:] == " steps 1 to 20; 20 running, 10 waiting\n"


def test_an_evaluation_has_no_time_left_to_tell(tmp_path: Path) -> None:
    (one,) = trials(tmp_path, 1)
    write(one, {"phase": "training"}, training(23), training(24), {"phase": "done"})
    stream = io.StringIO()
    LineView([one], stream)(states([one], "DONE", evaluating=True))
    last = stream.getvalue().splitlines()[-1]
    assert "evaluating" in last and "left" not in last


def test_what_was_done_before_is_not_said_to_have_run(tmp_path: Path) -> None:
    one = trials(tmp_path, 1)
    stream = io.StringIO()
    LineView(one, stream)(states(one, "DONE", elapsed=5.0))
    assert stream.getvalue()[8:] == " trial 0 (beta 0.1) is already done\n"


def test_cells() -> None:
    assert phase(TrialProgress()) == "starting"
    assert (
        phase(TrialProgress("validating", "16/64 pairs", in_phase=12.3, silent=1.0)) == "validating 12 s, 16/64 pairs"
    )
    assert phase(TrialProgress("loading model", silent=75.0, in_phase=80.0)) == "loading model, silent 1:15"
    assert phase(TrialProgress("done", in_phase=500.0, silent=500.0)) == "done"
    third = TrialState(trial=Trial(3, (), None, Path("/t")), state="RUNNING")
    silent = replace(third, progress=TrialProgress("training", step=4, max_steps=9, loss=0.5, silent=61.0))
    assert cell(silent) == "#3 4/9 loss 0.500 silent 1:01"
    assert cell(replace(third, progress=TrialProgress("training", step=4, loss=float("nan")))) == "#3 4 loss nan"
    hostile = replace(third, progress=TrialProgress("saving", "\x1b]52;c;aGk=\x07\u202e"))
    assert cell(hostile) == "#3 saving, ?]52;c;aGk=??"


@pytest.mark.parametrize("labels", [(), ("some-rather-long-word", "other")])
def test_the_picture_fits_in_80_columns(tmp_path: Path, labels: tuple[str, ...]) -> None:
    both = trials(tmp_path, 2, *labels)
    write(both[0], {"time": 0, "phase": "training"}, {"time": 1, **training(1, 54321)})
    write(both[0], {"time": time.time(), **training(12345, 54321)})
    write(both[1], {"phase": "loading model", "detail": "something.nemo"})
    picture = TableView(both, io.StringIO())
    console = Console(width=80, file=io.StringIO(), no_color=True)
    console.print(picture.draw(states(both, "RUNNING", "RUNNING")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    for word in ("12345/54321", "0.6123", "0.75", " d ", "loading", "2 running"):
        assert word in text, text


def test_a_picture_of_many_shows_what_matters_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "12")
    monkeypatch.setenv("COLUMNS", "80")
    many = trials(tmp_path, 40)
    now = states(many, *["WAITING"] * 40)
    now[30] = replace(now[30], state="RUNNING", log=Path("/l"))
    now[35] = replace(now[35], state="FAILED", error="OSError: gone")
    console = Console(width=80, file=io.StringIO(), no_color=True)
    console.print(TableView(many, io.StringIO()).draw(now))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= 12
    assert re.search(r"^30 3\.1 ", text, re.MULTILINE) and "trial 35 (beta 3.6) FAILED: OSError: gone" in text
    assert "1 running, 38 waiting, 1 failed, 34 of them not shown" in text


@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_it_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    both = trials(tmp_path)
    write(both[0], {"phase": "training"}, training(6))
    outer, inner = os.openpty()
    with os.fdopen(inner, "w") as terminal:
        with live_view(both, terminal) as shown:
            assert isinstance(shown, TableView)
            shown(states(both, "RUNNING", "FAILED", error="ValueError: no"))
        written = os.read(outer, 65536).decode()
    os.close(outer)
    assert "6/24" in written and "FAILED" in written
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-7]m", written)) is not no_color
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(live_view(both, io.StringIO()), LineView)
