"""The states that `status` shows, against what really happened on a real Slurm."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.slurm import client
from launcher.status import states
from launcher.status.trial_state import TrialState
from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.existing import Existing
from tests.slurm.sweeps import make, submit, until

# A signal's exit code is its number in Slurm 22.05 and 128 more in 24.11 and later.
_TERMINATED = r"(15|143):0(, steps 0:15)?"
_SEGFAULT = r"(1[15]|139|143):0(, steps 0:1[15])?"
# What happens: what the ranks do; then state, Slurm's word, exit code, reason and error (patterns) that are shown.
TABLE: list[tuple[str, dict[str, Any], str, str, str, str, str]] = [
    ("done", {}, "DONE", "COMPLETED|", "", "", ""),
    ("exception", {"0": "hang", "1": "raise"},
     "FAILED", "FAILED", _TERMINATED, "rank 1: Exited with exit code 1", "ValueError: the loss is nan"),
    ("exit code", {"0": "hang", "1": "exit"},
     "FAILED", "FAILED", _TERMINATED, "rank 1: Exited with exit code 3", "Exited with exit code 3"),
    ("segfault", {"0": "segfault", "1": "hang"},
     "FAILED", "FAILED", _SEGFAULT, "rank 0: Segm.*", "Fatal Python error: Segmentation fault"),
    ("memory", {"0": "memory", "1": "hang", "cluster": {"mem_gb": 0.5}},
     "FAILED", "FAILED|OUT_OF_MEMORY", r"\d+:\d+.*", "ran out of memory", ".*xceeded.*memory limit.*"),
    ("no result", {"all": "nothing"},
     "FAILED", "FAILED", "1:0", "its ranks ended well and left no result.json", ""),
    ("cancelled while it runs", {"all": "hang"},
     "CANCELLED", "CANCELLED", "0:0", r"cancelled after .+", ""),
    ("cancelled while it waits", {"cluster": {"sbatch": {"begin": "now+1hour"}}},
     "CANCELLED", "CANCELLED|", "(0:0)?", "cancelled before it started.*", ""),
    ("held", {"cluster": {"sbatch": {"hold": True}}},
     "WAITING", "PENDING", "", "held by its user.*", ""),
    ("dependency", {"cluster": {"sbatch": {"dependency": "afterok:BAD"}}},
     "WAITING", "PENDING", "", "never starts: the job it depends on failed.*", ""),
]  # fmt: skip


def shown(state: TrialState) -> tuple[str, str, str, str, str]:
    return state.state, state.slurm, state.exit_code, state.reason, state.error


def test_every_end_is_shown_as_what_it_was(
    cluster: Existing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=false").stdout.strip()
    time.sleep(3)
    behave = [json.loads(json.dumps(row[1]).replace("BAD", bad)) for row in TABLE]
    sweep = make(tmp_path / "sweep", *behave)
    submit(sweep)
    number = {row[0]: place for place, row in enumerate(TABLE)}
    running, waiting = number["cancelled while it runs"], number["cancelled while it waits"]
    look = until(sweep, lambda look: look.trials[running].state == "RUNNING" and look.trials[running].log is not None)
    assert look.exit_code == 3
    cluster.run("scancel", look.trials[running].job, look.trials[waiting].job)
    look = until(sweep, lambda look: look.counts.get("WAITING", 0) == 2 and not look.counts.get("RUNNING"))
    time.sleep(2)  # the accounting is a second late
    client.count.clear()
    look = states.look(Sweep.load(sweep.folder))
    assert client.count == Counter(squeue=1, sacct=1)
    for state in look.trials:
        print(state.trial.number, TABLE[state.trial.number][0], shown(state))
    for (name, _, *expected), state in zip(TABLE, look.trials, strict=True):
        for pattern, word in zip(expected, shown(state), strict=True):
            assert re.fullmatch(pattern, word), (name, shown(state))
    assert look.exit_code == 3, "two trials wait"
    capsys.readouterr()
    assert main(["status", str(sweep.folder)]) == 3
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    failed = number["exception"]
    assert main(["logs", str(failed), str(sweep.folder)]) == 0
    told = capsys.readouterr().out
    assert 'raise ValueError("the loss is nan")' in told and "rank 1 of 2" in told and "rank 0" not in told


def test_slurm_away_is_said_and_never_taken_for_an_end(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweep", {"seconds": 1}, {"all": "hang"}, {"all": "exit"}, {"all": "nothing"})
    submit(sweep)
    look = until(sweep, lambda look: look.counts == {"RUNNING": 1, "DONE": 1, "FAILED": 2})
    before = [state.state for state in look.trials]
    (array,) = [job.id for job in sweep.submitted()]
    assert wait_until(lambda: Counter(row.state.phase for row in client.sacct([array]))["running"] == 1, 20)
    assert wait_until(lambda: sum(row.state.ended for row in client.sacct([array])) == 3, 20)
    own_cluster.kill("slurmdbd")
    try:
        client.count.clear()
        look = states.look(Sweep.load(sweep.folder))
        assert client.count == Counter(squeue=1, sacct=1)
        assert [state.state for state in look.trials] == before, "squeue still knows how they ended"
        assert "sacct does not answer" in look.answers.troubles[0] and look.exit_code == 3
        assert look.trials[3].slurm == "FAILED" and look.trials[3].exit_code == ""

        # TERM: killed outright it forgets what ended in the last seconds, and calls it running when it is back.
        own_cluster.kill("slurmctld", signal.SIGTERM)
        client.count.clear()
        began = time.monotonic()
        look = states.look(Sweep.load(sweep.folder))
        print(f"both away: {time.monotonic() - began:.1f} s, {look.answers.troubles}")
        assert client.count == Counter(squeue=1, sacct=1) and len(look.answers.troubles) == 2
        assert [state.state for state in look.trials] == ["DONE", "UNKNOWN", "UNKNOWN", "UNKNOWN"]
        assert look.exit_code == 3
        (sweep.folder / "1" / "result.json").write_text("{}")
        assert states.join(sweep, look.answers).trials[1].state == "DONE", "the folder has the last word"
        (sweep.folder / "1" / "result.json").unlink()

        own_cluster.restart("slurmdbd")
        look = states.look(Sweep.load(sweep.folder))
        assert "squeue does not answer" in look.answers.troubles[0] and len(look.answers.troubles) == 1
        assert [state.state for state in look.trials] == before
        assert look.trials[1].reason == "according to the accounting; squeue does not answer"
    finally:
        own_cluster.restart("slurmdbd")
        own_cluster.restart("slurmctld")
    # a controller that was killed may have forgotten the last seconds, and asks its nodes again
    look = until(sweep, lambda look: [state.state for state in look.trials] == before)
    assert not look.answers.troubles


def test_a_job_that_slurm_has_forgotten_is_not_done(cluster: Existing, tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweep", {}, {})
    (sweep.folder / "slurm").mkdir()
    (sweep.folder / "slurm" / "0.id").write_text("987654\n")
    sweep.record_job("slurm", "", [0, 1], script="0.sbatch", name="x")
    (sweep.folder / "1" / "result.json").write_text('{"seconds": 2.0}')
    (sweep.folder / "slurm" / "987654_0.out").touch()
    client.count.clear()
    look = states.look(sweep)
    assert client.count == Counter(squeue=1, sacct=1)
    assert [state.state for state in look.trials] == ["FAILED", "DONE"] and look.exit_code == 1
    assert look.trials[0].reason == "has ended without a result; Slurm no longer knows job 987654_0"
    (sweep.folder / "slurm" / "987654_0.out").unlink()
    assert states.look(sweep).trials[0].state == "CANCELLED", "it has left no trace of a start"


def test_a_failed_node_and_preemption_send_a_trial_back_into_the_queue(
    own_cluster: Cluster, cluster: Existing, tmp_path: Path
) -> None:
    sweep = make(tmp_path / "sweep", *[{"all": "deaf"}] * 3, exclusive=True)
    submit(sweep)
    look = until(sweep, lambda look: look.counts == {"RUNNING": 3} and all(state.log for state in look.trials))
    lost, moved, preempted = look.trials
    cluster.run("scontrol", "update", f"JobId={lost.job}", "Requeue=0")
    for node in (lost.nodes, moved.nodes):
        own_cluster.power_off(node)
    rest = [name for name in cluster.names if name not in (lost.nodes, moved.nodes)]
    high = ["--qos=high", "--exclusive", f"--nodelist={preempted.nodes}", "--output=/dev/null", "--wrap=sleep 20"]
    cluster.run("sbatch", *high)
    try:
        look = until(sweep, lambda look: (look.trials[2].state, look.trials[2].restarts) == ("WAITING", 1))
        assert (look.trials[2].state, look.trials[2].slurm) == ("WAITING", "PENDING"), look.trials[2]
        look = until(sweep, lambda look: look.trials[0].state == "FAILED" and look.trials[1].restarts == 1)
        time.sleep(2)
        look = states.look(Sweep.load(sweep.folder))
        print([(shown(state), state.restarts) for state in look.trials])
        assert (look.trials[0].slurm, look.trials[0].reason) == ("NODE_FAIL", f"a node failed ({lost.nodes})")
        look = until(sweep, lambda look: look.trials[1].state == look.trials[2].state == "RUNNING")
        assert look.trials[1].nodes in rest and look.trials[1].restarts == look.trials[2].restarts == 1
    finally:
        for node in (lost.nodes, moved.nodes):
            own_cluster.restart(node)


def test_a_thousand_trials_are_one_question(
    cluster: Existing, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1000
    sweep = make(tmp_path / "sweep", *[{}] * count, sbatch={"begin": "now+1hour"})
    submit(sweep)
    (array,) = [job.id for job in sweep.submitted()]
    figures = []

    def timed(what: str, queries: dict[str, int], *words: str) -> str:
        client.count.clear()
        capsys.readouterr()
        began = time.perf_counter()
        assert main(["status", *words, str(sweep.folder)]) == (3 if "cancelled" not in what else 1)
        figures.append(f"{what}: {time.perf_counter() - began:.2f} s, {dict(client.count)}")
        assert client.count == Counter(queries)
        return capsys.readouterr().out

    text = timed("1,000 waiting", {"squeue": 1})
    assert len(text.splitlines()) < 8, "they are one row"
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(timed("1,000 waiting, --full", {"squeue": 1}, "--full").splitlines()) > count
    told = json.loads(timed("1,000 waiting, --json", {"squeue": 1}, "--json"))
    assert told["counts"] == {"WAITING": count} and told["trials"][999]["job"] == f"{array}_999"
    began = time.perf_counter()
    for index in range(20):
        client.squeue([f"{array}_{index}"])
    figures.append(f"one squeue an element: {(time.perf_counter() - began) * count / 20:.1f} s for 1,000 (20 measured)")
    cluster.run("scancel", array)
    until(sweep, lambda look: look.counts == {"CANCELLED": count})
    timed("1,000 cancelled", {"squeue": 1, "sacct": 1})
    with capsys.disabled():
        print("\n" + "\n".join(figures))


def test_retry_runs_what_failed_and_nothing_else(
    cluster: Existing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make(tmp_path / "sweep", {}, {"0": "hang", "1": "raise"}, {})
    submit(sweep)
    until(sweep, lambda look: look.counts == {"DONE": 2, "FAILED": 1})
    # a trial is done once its result is there; its batch script still notes how the start ended
    assert wait_until(lambda: not cluster.queue(), 60)
    (sweep.folder / "1" / "behave.json").write_text("{}")

    def times() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for number in "02" for path in (sweep.folder / number).rglob("*")}

    before = times()
    assert main(["retry", "--failed", str(sweep.folder)]) == 0
    assert "trial 1" in capsys.readouterr().out
    again = Sweep.load(sweep.folder)
    assert [job.trials for job in again.jobs] == [[0, 1, 2], [1]]
    assert main(["retry", "1", str(sweep.folder)]) == 1, "it waits or runs"
    assert len(Sweep.load(sweep.folder).jobs) == 2
    look = until(sweep, lambda look: look.counts == {"DONE": 3})
    assert look.exit_code == 0 and look.trials[1].restarts == 1 and times() == before
    rows = list(client.squeue([job.id for job in again.submitted()], ended=True))
    assert [(row.array_id, row.task_id) for row in rows].count((int(again.submitted()[1].id), 0)) == 1
    assert len(rows) == 4
    assert main(["retry", "--failed", str(sweep.folder)]) == 0, "nothing to do is no error"
    assert main(["logs", "1", str(sweep.folder)]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("==> job")]
    assert len(heads) == 2 and all("rank 0" in line for line in heads), "both starts, in order"


def test_cancel_ends_what_is_asked_for(cluster: Existing, tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweep", *[{"all": "hang"}] * 4)
    submit(sweep)
    until(sweep, lambda look: look.counts == {"RUNNING": 4})
    client.count.clear()
    assert main(["cancel", "0-1", "3", str(sweep.folder)]) == 0
    assert client.count["scancel"] == 1
    until(sweep, lambda look: [state.state for state in look.trials] == ["CANCELLED"] * 2 + ["RUNNING", "CANCELLED"])
    assert main(["cancel", "--sweep", str(sweep.folder), "-y"]) == 0
    until(sweep, lambda look: look.counts == {"CANCELLED": 4})


@pytest.mark.slow
def test_the_time_limit(cluster: Existing, tmp_path: Path) -> None:
    sweep = make(tmp_path / "sweep", {"all": "deaf"}, {"all": "hang"}, time=1, signal_delay_s=10)
    submit(sweep)
    look = until(sweep, lambda look: look.exit_code == 1, 150)
    time.sleep(2)
    look = states.look(sweep)
    print([shown(state) for state in look.trials])
    deaf, ended = look.trials
    assert (deaf.state, deaf.reason) == ("FAILED", "reached its time limit; it did not save in time")
    assert ended.state == "FAILED" and "User defined signal 2" in ended.reason, "the warning has ended it before"
