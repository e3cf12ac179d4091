"""Whether the jobs that Slurm lists are the sweep's: hand-submitted arrays, other clusters, ids that sbatch lost."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.slurm import client
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.slurm.run import Answer, SlurmError
from launcher.status import states
from launcher.status.watcher import Watcher
from launcher.submit import actions
from launcher.sweep.folder import Sweep
from tests.unit.status.test_states import ARRAY, accounted, done, make, queued

HOUR = 3600.0


class Slurm:
    """The Slurm of this machine, cluster `blue`. `asked` notes the commands; those in `away` do not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[QueueRow] = []
        self.account: list[AccountRow] = []
        self.names: dict[int, str] = {}
        """The job names of arrays, where one asks for them."""
        self.cluster = "blue"
        self.asked: list[str] = []
        self.away: Sequence[str] = ()
        for name in ("squeue", "sacct", "scancel", "cluster_name"):
            monkeypatch.setattr(client, name, getattr(self, name))

    def note(self, command: str) -> None:
        self.asked.append(command)
        if command in self.away:
            raise SlurmError(Answer((command,), 1, "", f"{command.split()[0]}: error: Socket timed out", 18.0))

    def squeue(self, ids: Sequence[int] | None = None, name: str = "", **how: Any) -> list[QueueRow]:
        self.note("squeue by name" if name else "squeue")
        rows = [row for row in self.queue if ids is None or row.array_id in ids]
        return [row for row in rows if not name or self.names.get(row.array_id or 0) == name]

    def sacct(self, ids: Sequence[int], name: str | None = None) -> list[AccountRow]:
        self.note("sacct")
        rows = [row for row in self.account if row.array_id in ids]
        return [row for row in rows if not name or self.names.get(row.array_id or 0) == name]

    def scancel(self, names: Sequence[str]) -> None:
        self.note(f"scancel {' '.join(names)}")

    def cluster_name(self) -> str:
        self.note("scontrol")
        return self.cluster


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


@pytest.mark.parametrize("waited", [0.0, HOUR])
def test_a_hand_submitted_sweep_may_have_waited_in_the_queue(tmp_path: Path, slurm: Slurm, waited: float) -> None:
    """Its first element records the array as it starts, which says nothing about when it was submitted."""
    sweep = make(tmp_path / "s", 2, array=None)
    sweep.record_job("slurm", str(ARRAY), [0, 1], name="dpo")
    slurm.queue = [queued(n, "RUNNING", submitted=time.time() - waited) for n in range(2)]
    assert [state.state for state in states.look(sweep).trials] == ["RUNNING"] * 2
    slurm.queue = [queued(n, "RUNNING", submitted=time.time() + HOUR) for n in range(2)]
    assert "to another job" in states.look(sweep).trials[0].reason, "the id was given again later"


# -- clusters that share a disk ----------------------------------------------------------------------------------------


def on(cluster: str, folder: Path, trials: int = 2) -> Sweep:
    """A sweep that was submitted on this cluster as array ARRAY, in the ordinary way."""
    sweep = make(folder, trials, array=None)
    (folder / "slurm").mkdir()
    (folder / "slurm" / "0.id").write_text(f"{ARRAY}\n")
    name = f"tune-{sweep.data['id']}"
    sweep.record_job("slurm", "", range(trials), script="0.sbatch", name=name, cluster=cluster)
    return Sweep.load(folder)


def test_a_healthy_sweep_costs_no_further_question(tmp_path: Path, slurm: Slurm) -> None:
    sweep = on("blue", tmp_path / "s")
    slurm.queue = [queued(0, "RUNNING"), queued(1, "PENDING")]
    assert states.look(sweep).counts == {"RUNNING": 1, "WAITING": 1} and slurm.asked == ["squeue"]
    slurm.asked.clear()
    slurm.queue.pop()
    assert [state.state for state in states.look(sweep).trials] == ["RUNNING", "CANCELLED"]
    assert slurm.asked == ["squeue", "sacct"], "its other elements tell that the array is this cluster's"


@pytest.mark.parametrize("same_id", [False, True])
def test_a_sweep_of_another_cluster_on_the_same_disk(
    tmp_path: Path, slurm: Slurm, same_id: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`same_id`: this cluster has given its id to a job of its own."""
    sweep = on("green", tmp_path / "s")
    if same_id:
        slurm.queue = [queued(n, "RUNNING", submitted=time.time() + HOUR, restarts=1) for n in range(2)]
        slurm.names = {ARRAY: "another"}
    look = states.look(sweep)
    assert [state.state for state in look.trials] == ["UNKNOWN"] * 2 and look.exit_code == 3
    assert "squeue -M green" in look.trials[0].reason and slurm.asked[-1] == "scontrol"
    assert main(["retry", "-y", str(sweep.folder)]) == 1 and "not started again" in capsys.readouterr().err
    assert main(["cancel", "-y", str(sweep.folder)]) == 2 and "scancel -M green 69_0" in capsys.readouterr().err
    slurm.cluster = "Green"
    assert [state.state for state in states.look(sweep).trials] != ["UNKNOWN"] * 2, "this is it"


def test_a_sweep_of_an_earlier_version_names_no_cluster(tmp_path: Path, slurm: Slurm) -> None:
    sweep = on("", tmp_path / "s")
    assert states.look(sweep).counts == {"CANCELLED": 2} and "scontrol" not in slurm.asked


def test_a_hand_submitted_sweep_of_another_cluster(tmp_path: Path, slurm: Slurm) -> None:
    """An old job of this cluster has its id, and nothing but the cluster tells them apart."""
    sweep = make(tmp_path / "s", 2, array=None)
    sweep.record_job("slurm", str(ARRAY), [0, 1], name="dpo", cluster="green")
    slurm.queue = [queued(n, "RUNNING", submitted=time.time() - HOUR) for n in range(2)]
    slurm.account = [accounted(n, "FAILED") for n in range(2)]
    look = states.look(sweep)
    assert look.counts == {"UNKNOWN": 2} and look.answers.queue == {}
    slurm.cluster = "green"
    assert states.look(sweep).counts == {"RUNNING": 2}
    slurm.away = ("squeue",)
    assert states.look(sweep).counts == {"UNKNOWN": 2}, "the accounting alone does not tell"


def test_what_slurm_does_not_know_is_cancelled_on_its_own_cluster_only(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = on("green", tmp_path / "s")
    slurm.away = ("squeue", "sacct")
    assert states.look(sweep).trials[0].reason == "Slurm does not answer"
    assert main(["cancel", "-y", str(sweep.folder)]) == 2 and "scancel -M green 69_0" in capsys.readouterr().err
    slurm.cluster = "green"
    assert main(["cancel", "-y", str(sweep.folder)]) == 0 and slurm.asked[-1] == "scancel 69_[0-1]"


def test_a_cluster_that_does_not_tell_its_name(tmp_path: Path, slurm: Slurm) -> None:
    slurm.away = ("scontrol",)
    look = states.look(on("green", tmp_path / "s"))
    assert look.counts == {"UNKNOWN": 2} and "which may not be this one" in look.trials[0].reason
    assert look.answers.troubles == (
        "scontrol does not answer (Socket timed out): it is not certain which jobs are on this cluster",
    )


def test_watch_keeps_what_it_knows_of_other_clusters(tmp_path: Path, slurm: Slurm) -> None:
    watcher = Watcher(on("green", tmp_path / "s"))
    assert watcher.first().counts == {"UNKNOWN": 2}
    slurm.away = ("squeue", "sacct")
    look = watcher.first()
    assert look.counts == {"UNKNOWN": 2} and "squeue -M green" in look.trials[0].reason


# -- the array of the evaluation ---------------------------------------------------------------------------------------


def evaluated(folder: Path, receipt: str, cluster: str = "", ago: float = 0.0, trials: int = 1) -> Sweep:
    """A sweep whose trials are done; their evaluation was submitted `ago` seconds ago, as array 71."""
    sweep = on(cluster, folder, trials)
    for number in range(trials):
        done(sweep, number)
    (folder / "slurm" / "evaluate0.id").write_text(f"{receipt}\n")
    name = f"tune-evaluate-{sweep.data['id']}"
    sweep.record_job("evaluation", "71", range(trials), script="evaluate0.sbatch", name=name, cluster=cluster)
    data = json.loads((folder / "sweep.json").read_text())
    data["jobs"][1]["submitted"] = datetime.fromtimestamp(time.time() - ago).astimezone().isoformat()
    (folder / "sweep.json").write_text(json.dumps(data))
    return Sweep.load(folder)


@pytest.mark.parametrize(("receipt", "cluster"), [("71;green", ""), ("71;green", "blue"), ("71", "green")])
@pytest.mark.parametrize("same_id", [False, True])
def test_an_evaluation_on_another_cluster(
    tmp_path: Path, slurm: Slurm, receipt: str, cluster: str, same_id: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `cluster.sbatch.clusters`, also in a sweep of an earlier version; or submitted there, and seen from here."""
    sweep = evaluated(tmp_path / "s", receipt, cluster)
    if same_id:
        slurm.queue = [queued(0, "RUNNING", array_id=71, submitted=time.time() + HOUR)]
    look = states.look(sweep)
    assert look.trials[0].evaluation == "evaluation on the cluster green; to see its state: squeue -M green -j 71"
    assert actions.to_evaluate(look, []) == [], "it may run there"
    assert main(["cancel", "-y", str(sweep.folder)]) == 2 and "scancel -M green 71_0" in capsys.readouterr().err
    assert not [command for command in slurm.asked if command.startswith("scancel")]
    slurm.cluster = "green"
    look = states.look(sweep)
    assert "evaluation ended early" in look.trials[0].evaluation and actions.to_evaluate(look, []) == sweep.trials


def test_an_evaluation_whose_id_is_another_jobs_now(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = evaluated(tmp_path / "s", "71", "blue", ago=HOUR)
    slurm.queue = [queued(0, "RUNNING", array_id=71)]
    assert "evaluation ended early" in states.look(sweep).trials[0].evaluation
    assert main(["cancel", "-y", str(sweep.folder)]) == 0 and "no trial of" in capsys.readouterr().out
    slurm.names = {71: f"tune-evaluate-{sweep.data['id']}"}
    slurm.asked.clear()
    assert states.look(sweep).trials[0].evaluation_job == "71_0", "it was requeued, and has its own name"
    assert slurm.asked == ["squeue", "squeue by name"]


def test_an_earlier_evaluation_is_no_surer_than_the_last(tmp_path: Path, slurm: Slurm) -> None:
    """Array 71 is another user's now; trial 0 was evaluated again since, as 72, and 71 is asked about for trial 1."""
    sweep = evaluated(tmp_path / "s", "71", "blue", ago=HOUR, trials=2)
    name = f"tune-evaluate-{sweep.data['id']}"
    sweep.record_job("evaluation", "72", [0], script="evaluate1.sbatch", name=name, cluster="blue")
    slurm.queue = [queued(n, "RUNNING", array_id=71) for n in range(2)]
    assert [state.evaluation_job for state in states.look(sweep).trials] == ["", ""]


def test_no_evaluation_is_submitted_again_while_slurm_is_away(tmp_path: Path, slurm: Slurm) -> None:
    sweep = evaluated(tmp_path / "s", "71", "blue")
    assert actions.to_evaluate(states.look(sweep), []) == sweep.trials
    slurm.away = ("squeue",)
    assert actions.to_evaluate(states.look(sweep), []) == []


# -- ids that sbatch did not return ------------------------------------------------------------------------------------


def lost(folder: Path, *sizes: int, cluster: str = "blue") -> Sweep:
    """A sweep of three trials, whose sbatch was killed: for the first `sizes[0]` of them, then the first `sizes[1]`."""
    sweep = make(folder, 3, array=None)
    for number, size in enumerate(sizes):
        name = f"tune-{sweep.data['id']}"
        sweep.record_job("slurm", "", range(size), script=f"{number}.sbatch", name=name, cluster=cluster)
    return Sweep.load(folder)


def test_while_slurm_is_away_nothing_is_called_refused(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = lost(tmp_path / "s", 3)
    slurm.away = ("squeue by name",)
    look = states.look(sweep)
    assert look.counts == {"UNKNOWN": 3} and look.exit_code == 3 and slurm.asked == ["squeue by name"]
    assert "squeue does not answer (Socket timed out)" in look.answers.troubles[0]
    assert look.trials[0].reason.endswith(f"squeue --me --name=tune-{sweep.data['id']}")
    assert main(["retry", "-y", str(sweep.folder)]) == 1 and "not started again" in capsys.readouterr().err
    assert main(["cancel", "-y", str(sweep.folder)]) == 2 and "squeue --me --name" in capsys.readouterr().err
    slurm.away = ()
    assert states.look(sweep).counts == {"UNSUBMITTED": 3}


def test_a_retry_whose_id_was_lost_is_no_failure_of_the_array_before(tmp_path: Path, slurm: Slurm) -> None:
    sweep = on("blue", tmp_path / "s")
    sweep.record_job("slurm", "", [0], script="1.sbatch", name=f"tune-{sweep.data['id']}", cluster="blue")
    slurm.account = [accounted(n, "FAILED", submitted=time.time()) for n in range(2)]
    slurm.names = {ARRAY: f"tune-{sweep.data['id']}"}
    assert [state.state for state in states.look(sweep).trials] == ["FAILED", "FAILED"], "sbatch refused it"
    slurm.away = ("squeue by name",)
    assert [state.state for state in states.look(sweep).trials] == ["UNKNOWN", "FAILED"]


def test_a_lost_array_is_found_once_some_of_its_elements_are_forgotten(tmp_path: Path, slurm: Slurm) -> None:
    sweep = lost(tmp_path / "s", 3)
    slurm.names = dict.fromkeys((ARRAY, 80), f"tune-{sweep.data['id']}")
    slurm.queue = [queued(2, "RUNNING")]
    assert [(state.state, state.job) for state in states.look(sweep).trials][2] == ("RUNNING", f"{ARRAY}_2")
    slurm.queue.append(queued(0, "RUNNING", array_id=80))
    assert states.look(sweep).counts == {"UNKNOWN": 3}, "which of the two it is, nobody can tell"


def test_a_lost_array_of_another_cluster(tmp_path: Path, slurm: Slurm) -> None:
    look = states.look(lost(tmp_path / "s", 3, cluster="green"))
    assert look.counts == {"UNKNOWN": 3} and "squeue -M green --me --name=tune-" in look.trials[0].reason
    slurm.cluster = "green"
    assert states.look(look.sweep).counts == {"UNSUBMITTED": 3}
