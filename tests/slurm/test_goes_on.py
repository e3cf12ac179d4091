"""A trial goes on by itself: restarts on a real Slurm, with a few lines of Python in the place of training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.slurm import client, requeued
from launcher.status.trial_state import Look
from launcher.sweep import bad_nodes, find, starts
from launcher.sweep import logs as rank_logs
from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.existing import Existing
from tests.slurm.sweeps import make, submit, until

TRAIN = {"all": "train", "until": 5}
DONE = {"all": "done", "seconds": 0}


def running(sweep: Sweep, *numbers: int, start: int = 1) -> Look:
    """Looks until these trials run for the `start`th time, with all ranks at work."""

    def at_work(number: int) -> bool:
        folder = sweep.trials[number].folder
        now = [one.name for one in starts.read(folder)][start - 1 :]
        logs = [log for one in rank_logs.by_start(folder) if [one.name] == now for log in one.logs.values()]
        return len(logs) == 2 and all("does" in log.read_text() for log in logs)

    return until(sweep, lambda look: all(look.trials[n].state == "RUNNING" and at_work(n) for n in numbers))


def words(look: Look) -> list[str]:
    return [state.state for state in look.trials]


def ended(sweep: Sweep, trial: int = 0) -> list[tuple[str, str]]:
    """(how it ended, what was done about it) of each start, once its script has noted the last one's end."""
    folder = sweep.trials[trial].folder
    assert wait_until(lambda: starts.read(folder)[-1].kind is not None, 20), starts.read(folder)
    return [(str(start.kind), start.then) for start in starts.read(folder)]


def test_a_warning_of_somebodys_and_a_plain_cancel(cluster: Existing, tmp_path: Path) -> None:
    """The warned are requeued, each alone, whatever its number; the cancelled one is not, its neighbours run on."""
    sweep = make(tmp_path / "sweep", *[{"starts": [TRAIN, DONE]}] * 4)
    submit(sweep)
    look = running(sweep, 0, 1, 2, 3)
    cluster.run("scancel", "--signal=TERM", look.trials[3].job)
    cluster.run("scancel", "--signal=USR2", look.trials[1].job)
    cluster.run("scancel", look.trials[2].job)
    look = until(sweep, lambda look: words(look) == ["RUNNING", "DONE", "CANCELLED", "DONE"])
    for number in (1, 3):
        assert ended(sweep, number) == [("asked", "requeued"), ("done", "")]
        first, second = starts.read(sweep.trials[number].folder)
        assert (first.first_step, first.last_step, second.first_step) == (0, 5, 5)
    assert ended(sweep, 2) == [("cancelled", "")]
    (untouched,) = starts.read(sweep.trials[0].folder)
    assert untouched.kind is None and look.trials[0].restarts == 0


@pytest.fixture
def grace(own_cluster: Cluster) -> Iterator[None]:
    """Jobs that are preempted have 20 seconds."""
    own_cluster.sacctmgr("modify", "qos", "normal", "set", "GraceTime=20")
    yield
    own_cluster.sacctmgr("modify", "qos", "normal", "set", "GraceTime=0")


def test_interruptions(own_cluster: Cluster, cluster: Existing, grace: None, tmp_path: Path) -> None:
    """Preemption, a time limit, a lost node: all go on, each is counted as what it was, and a dependent waits."""
    behave = {"starts": [TRAIN, {**DONE, "saves": 6}]}
    limit = {"cluster": {"time": 1, "signal_delay_s": 50, "max_timeouts": 1}}
    sweep = make(tmp_path / "sweep", behave, behave, {**behave, **limit}, exclusive=True, max_node_failures=1)
    submit(sweep)
    preempted, lost, _ = running(sweep, 0, 1, 2).trials
    (array,) = {state.job.partition("_")[0] for state in (preempted, lost)}
    dependent = cluster.run("sbatch", "--parsable", f"--dependency=afterok:{array}", "--wrap=true", "-o/dev/null")
    high = ["--qos=high", "--exclusive", f"--nodelist={preempted.nodes}", "--output=/dev/null", "--wrap=sleep 1"]
    cluster.run("sbatch", *high)
    cluster.run("scontrol", "update", f"NodeName={lost.nodes}", "State=DOWN", "Reason=test")
    try:
        until(sweep, lambda look: "node failed" in look.trials[1].reason or look.trials[1].state == "DONE")
        assert cluster.run("squeue", "-h", "-j", dependent.stdout.strip(), "-o", "%T").stdout.strip() == "PENDING"
        look = until(sweep, lambda look: words(look) == ["DONE"] * 3)
    finally:
        # its slurmd may have brought it back by itself
        cluster.run("scontrol", "update", f"NodeName={lost.nodes}", "State=RESUME", check=False)
    assert ended(sweep, 0) == [("preempted", "requeued"), ("done", "")]
    assert ended(sweep, 1) == [("node", "requeued by Slurm"), ("done", "")]
    assert ended(sweep, 2) == [("timeout", "requeued"), ("done", "")]
    assert [state.restarts for state in look.trials] == [1, 1, 1]
    assert wait_until(lambda: not cluster.queue(), 30), cluster.queue()


def test_failures_are_bounded(cluster: Existing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that gets on is tried as often as it may be, one that does not once more, one with a bug not at all."""

    def crash(step: int) -> dict[str, object]:
        return {"all": "exit", "saves": step}

    sweep = make(
        tmp_path / "sweep",
        {"starts": [crash(2), crash(4), DONE]},
        {"starts": [crash(2), crash(4), crash(6)]},
        {"starts": [crash(0)]},
        {"starts": [{"all": "raise"}]},
        max_restarts=2,
    )
    submit(sweep)
    look = until(sweep, lambda look: words(look) == ["DONE", "FAILED", "FAILED", "FAILED"])
    assert ended(sweep, 0) == [("failure", "requeued"), ("failure", "requeued"), ("done", "")]
    assert [kind for kind, _ in ended(sweep, 1)] == ["failure"] * 3
    assert ended(sweep, 1)[2][1].startswith("gave up: failed 3 times, and cluster.max_restarts=2")
    assert [kind for kind, _ in ended(sweep, 2)] == ["failure"] * 2
    assert ended(sweep, 2)[1][1].startswith("gave up: no progress in two starts, both from step 0")
    assert [kind for kind, _ in ended(sweep, 3)] == ["refused"]
    assert "failed 3 times" in look.trials[1].reason and "no progress" in look.trials[2].reason
    assert look.trials[3].error == "ValueError: the loss is nan"
    capsys.readouterr()
    assert main(["logs", "1", str(sweep.folder)]) == 0
    assert "start 2 of 3" in capsys.readouterr().out


def test_a_bad_node(cluster: Existing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What fails on a node before its first step goes on elsewhere; what fails everywhere is not the node's fault."""
    early = {"all": "exit", "early": True}
    sweep = make(tmp_path / "one" / "sweep", {"starts": [early, TRAIN]}, max_restarts=3, exclusive=True)
    other = make(tmp_path / "all" / "sweep", {"starts": [early]}, max_restarts=3, exclusive=True)
    submit(sweep)
    submit(other)
    look = running(sweep, 0, start=2)
    first, second = starts.read(sweep.trials[0].folder)
    (bad,) = bad_nodes.read(sweep.folder)
    assert (bad.name, bad.cluster, first.blamed) == (first.nodes, "lab", first.nodes)
    assert second.nodes != first.nodes and look.trials[0].nodes == second.nodes
    capsys.readouterr()
    main(["status", str(sweep.folder)])
    assert f"{first.nodes} since trial 0: Exited with exit code 3" in capsys.readouterr().out
    main(["status", "--json", str(sweep.folder)])
    assert [node["name"] for node in json.loads(capsys.readouterr().out)["bad_nodes"]] == [first.nodes]
    until(other, lambda look: words(look) == ["FAILED"])
    assert "so it is not the node" in ended(other)[1][1] and len(ended(other)) == 2
    assert bad_nodes.read(other.folder) == []


def test_where_a_requeue_is_forbidden_another_job_goes_on(
    cluster: Existing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that wait for the array wait for that one as well; all commands know it."""
    sweep = make(tmp_path / "sweep", DONE, {"starts": [TRAIN, TRAIN, DONE]}, requeue=False)
    submit(sweep)
    look = running(sweep, 1)
    array = look.trials[1].job.partition("_")[0]
    after = cluster.run("sbatch", "--parsable", f"--dependency=afterok:{array}", "--wrap=true", "--output=/dev/null")
    dependent = after.stdout.strip()
    jobs = [look.trials[1].job]
    monkeypatch.setenv(find.ENVIRONMENT, str(tmp_path))
    cluster.run("scancel", "--signal=TERM", jobs[0])
    jobs.append(running(sweep, 1, start=2).trials[1].job)
    assert jobs[0] != jobs[1]
    assert cluster.run("squeue", "-h", "-j", dependent, "-o", "%T").stdout.strip() == "PENDING"
    one, (trial,) = find.trials_and_sweep([jobs[1]], None)
    assert (one.folder, trial.number) == (sweep.folder, 1)
    cluster.run("scancel", "--signal=TERM", jobs[1])
    look = until(sweep, lambda look: words(look) == ["DONE", "DONE"])
    assert [kind for kind, _ in ended(sweep, 1)] == ["asked", "asked", "done"]
    assert len({start.chain for start in starts.read(sweep.trials[1].folder)}) == 1
    assert wait_until(lambda: not cluster.queue(), 30), cluster.queue()
    assert wait_until(lambda: [row.state.word for row in client.sacct([dependent])] == ["COMPLETED"], 20)


def test_the_hold_of_a_requeue_is_cut_short(cluster: Existing, tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweep", {"starts": [TRAIN, DONE]})
    submit(sweep)
    look = running(sweep, 0)
    (array,) = [job.id for job in sweep.submitted()]
    cluster.run("scancel", "--signal=TERM", look.trials[0].job)
    assert wait_until(lambda: [row.reason for row in client.squeue([array])] == ["BeginTime"], 20)
    assert requeued.start_held(client.squeue([array])) == [], "it may be too early"
    assert wait_until(lambda: requeued.start_held(client.squeue([array])) == [look.trials[0].job], 6, poll=0.5)
    until(sweep, lambda look: words(look) == ["DONE"])
