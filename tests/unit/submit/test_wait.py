"""wait=true: until no trial can become done any more, by the states that `status` shows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.compose import hydra_state
from launcher.slurm import client
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.submit import wait
from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from tests.unit.status.test_states import accounted, log, make, queued

_SLEEP = time.sleep
FINAL = '{"seconds": 12.0, "final": {"val/loss": 0.5}}'


class Slurm:
    """Answers each question with the next list of rows; each sleep takes 16 s, after which `then` is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *queues: list[QueueRow]) -> None:
        self.now, self.queues, self.account = 1000.0, list(queues), list[AccountRow]()
        self.then: dict[int, Callable[[], Any]] = {}
        self.slept = 0
        monkeypatch.setattr(client, "squeue", self.squeue)
        monkeypatch.setattr(client, "sacct", lambda *ids, **how: self.account)
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr(hydra_state, "exit_code", 0)

    def squeue(self, *ids: object, **how: object) -> list[QueueRow]:
        rows = self.queues[0]
        self.queues = self.queues[1:] or self.queues
        return rows

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        assert self.slept < 50, "it waits for ever"
        _SLEEP(0.05)  # for the thread that asks
        self.now += 16
        self.then.get(self.slept, lambda: None)()


def result(sweep: Sweep, trial: int) -> Callable[[], Any]:
    return lambda: (sweep.trials[trial].folder / "result.json").write_text(FINAL)


def test_it_ends_with_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sweep = make(tmp_path / "s", 2)
    slurm = Slurm(monkeypatch, [queued(0, "RUNNING"), queued(1, "PENDING")], [queued(1, "RUNNING")], [])
    slurm.then = {4: result(sweep, 0), 6: result(sweep, 1)}
    (first, second) = wait.wait_for(sweep, sweep.trials)
    assert (first.return_value, second.return_value, hydra_state.exit_code) == (0.5, 0.5, 0)
    out = capsys.readouterr().out
    assert "trial 1 (beta 0.1) lr=1 done after 12 s" in out
    assert "trial 0 (beta 0) lr=0 stopping: has left" in out and "cancelled" not in out


def test_a_result_may_show_later_than_the_queue_forgets_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make(tmp_path / "s", 1)
    log(sweep, 0)
    slurm = Slurm(monkeypatch, [])
    slurm.account = [accounted(0, "COMPLETED")]
    slurm.then = {1: result(sweep, 0)}
    wait.wait_for(sweep, sweep.trials)
    assert hydra_state.exit_code == 0 and slurm.slept == 1


@pytest.mark.parametrize(
    ("word", "state", "why"),
    [
        ("CANCELLED", "CANCELLED", "cancelled after 1:03"),
        ("TIMEOUT", "FAILED", "reached its time limit"),
        ("FAILED", "FAILED", "gave up: no progress in two starts"),
    ],
)
def test_a_trial_that_ended_badly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, word: str, state: str, why: str
) -> None:
    """With the state and the reason that `status` gives."""
    sweep = make(tmp_path / "s", 1)
    log(sweep, 0)
    if word == "FAILED":
        for name, then in (("69.0", "requeued"), ("69.1", why)):
            log(sweep, 0, name=name)
            starts.began(sweep.trials[0].folder, starts.Start(name, "69_0", "n1", 1.0, 0))
            starts.ended(sweep.trials[0].folder, name, "failure", "no", 0, then)
    slurm = Slurm(monkeypatch, [])
    slurm.account = [accounted(0, word)]
    wait.wait_for(sweep, sweep.trials)
    assert hydra_state.exit_code == 1 and slurm.slept == 0
    err = capsys.readouterr().err
    assert f"error: trial 0 (beta 0) {state}: {why}" in err and f"{sweep.folder}/0/log" in err
