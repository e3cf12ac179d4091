"""What `status` and `logs` say of a trial that was started several times, in one job or in several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.commands.status import as_json
from launcher.slurm import client, requeued
from launcher.status.states import join
from launcher.status.table import table
from launcher.status.trial_state import Look
from launcher.sweep import bad_nodes, find, starts
from launcher.sweep.folder import Sweep
from launcher.sweep.starts import Kind, Start
from tests.unit.status.test_states import ARRAY, accounted, answers, log, make, one, queued


def start(sweep: Sweep, name: str, kind: Kind | None = None, why: str = "", step: int = 0, then: str = "") -> None:
    folder = sweep.trials[0].folder
    log(sweep, 0, name=name)
    begun = Start(name=name, chain=f"{ARRAY}_0", nodes="node1", began=1.0, first_step=0)
    starts.began(folder, begun)
    if kind:
        starts.ended(folder, name, kind, why, step, then)


def test_why_it_waits_again(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s")
    start(sweep, f"{ARRAY}.0", "preempted", "preempted", 40, "requeued")
    state = one(sweep, [queued(0, "PENDING", reason="BeginTime", restarts=1)])
    assert (state.state, state.restarts) == ("WAITING", 1)
    assert state.reason == "preempted; goes on from step 40, held by Slurm for some minutes"
    assert "goes on from step 40; waits for free nodes" in one(sweep, [queued(0, "PENDING", reason="Resources")]).reason


def test_what_came_before_a_start_that_runs(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s")
    start(sweep, f"{ARRAY}.0", "node", "a node failed", 40, "requeued by Slurm")
    start(sweep, f"{ARRAY}.1")
    state = one(sweep, [queued(0, "RUNNING", restarts=1)])
    assert state.reason == "start 2, from step 0; before: a node failed"
    (first, second) = as_json(Look(sweep, [state], answers([])))["trials"][0]["starts"]
    assert (first["kind"], first["last_step"], second["kind"]) == ("node", 40, None)


def test_why_it_was_given_up(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s")
    start(sweep, f"{ARRAY}.0", "failure", "Segmentation fault", 0, "requeued")
    why = "gave up: no progress in two starts, both from step 0: Segmentation fault"
    start(sweep, f"{ARRAY}.1", "failure", "Segmentation fault", 0, why)
    state = one(sweep, [], [accounted(0, "FAILED", exit_code=139)])
    assert (state.state, state.reason) == ("FAILED", why)


def test_a_job_that_goes_on_for_another_is_the_sweeps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make(tmp_path / "s")
    (sweep.folder / "slurm" / f"trial2-after-{ARRAY}_2.id").write_text("75\n")
    rows = [queued(2, "COMPLETED"), queued(2, "RUNNING", job_id=75, array_id=75)]
    state = join(sweep, answers(rows)).trials[2]
    assert (state.state, state.job) == ("RUNNING", "75_2")
    monkeypatch.setenv(find.ENVIRONMENT, str(tmp_path))
    found, (trial,) = find.trials_and_sweep(["75_2"], None)
    assert (found.folder, trial.number) == (sweep.folder, 2)
    failed = join(sweep, answers([], [accounted(2, "COMPLETED"), accounted(2, "FAILED", job_id=75, array_id=75)]))
    assert failed.trials[2].state == "FAILED" and failed.trials[2].job == "75_2"


def test_bad_nodes_are_seen(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s")
    bad_nodes.add(sweep.folder, "lab", "node7", "2 GPUs of 4 are there", 1)
    look = join(sweep, answers([queued(number, "PENDING") for number in range(3)]))
    assert "node7 since trial 1: 2 GPUs of 4 are there" in table(look)
    assert json.loads(json.dumps(as_json(look)))["bad_nodes"][0]["name"] == "node7"


def test_only_what_was_requeued_a_while_ago_is_hastened(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    started: list[list[str]] = []
    monkeypatch.setattr(requeued, "_held", {})
    monkeypatch.setattr(requeued.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(client, "start_now", lambda names: started.append(list(names)))
    held = queued(0, "PENDING", reason="BeginTime", restarts=1)
    begin = queued(1, "PENDING", reason="BeginTime")  # its user wants it to wait
    assert requeued.start_held([held, begin]) == []
    now[0] += 4
    assert requeued.start_held([held, begin]) == [held.name]
    requeued.start_held([queued(0, "RUNNING", restarts=1)])
    assert requeued.start_held([held]) == [], "another requeue is another hold"
    assert started == [[], [held.name], [], []]
