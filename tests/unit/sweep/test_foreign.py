"""Among other people: another's sweep, another's job or process, and odd things in a sweep's folder."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.__main__ import main
from launcher.commands import cancel
from launcher.findings import Refused
from launcher.slurm import client, requeued
from launcher.slurm.run import Answer, SlurmError
from launcher.status import states
from launcher.status.live import LineView, TableView
from launcher.status.losses import Losses
from launcher.status.rows import rows_table
from launcher.status.table import table
from launcher.status.trial_state import TrialState
from launcher.status.watcher import Watcher
from launcher.submit import actions
from launcher.sweep import find
from launcher.sweep.folder import Sweep
from tests.unit.local.test_local_states import local
from tests.unit.status.test_states import ARRAY, answers, make, queued

ROOT = Path(__file__).resolve().parents[3]
LAST_YEAR = "2025-01-05T10:00:00+00:00"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(find.ENVIRONMENT, raising=False)
    return tmp_path / "runs"


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What scancel and scontrol were called with; squeue knows nothing."""
    done: list[Any] = []
    monkeypatch.setattr(client, "squeue", lambda *ids, **how: [])
    monkeypatch.setattr(client, "sacct", lambda *ids, **how: [])
    monkeypatch.setattr(client, "scancel", done.append)
    monkeypatch.setattr(client, "start_now", lambda names: done.extend(names))
    yield done


def give_away(sweep: Sweep) -> Sweep:
    for path in (sweep.folder, *sweep.folder.rglob("*")):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    return sweep


def dated(sweep: Sweep, submitted: str) -> Sweep:
    data = json.loads((sweep.folder / "sweep.json").read_text())
    data["jobs"][0]["submitted"] = submitted
    (sweep.folder / "sweep.json").write_text(json.dumps(data))
    return Sweep.load(sweep.folder)


# -- another's sweep ---------------------------------------------------------------------------------------------------


@as_root
def test_anothers_sweep_can_be_looked_at_no_more(runs: Path, slurm: list[Any], capsys: Any) -> None:
    sweep = give_away(make(runs / "theirs"))
    assert main(["status", str(sweep.folder)]) == 1
    for command in (["cancel", "-y"], ["retry", "-y"]):
        assert main([*command, "--sweep", str(sweep.folder)]) == 2
        assert "belongs to another user (id 12345)" in capsys.readouterr().err
    look = states.join(sweep, answers([queued(0, "RUNNING")]))
    with pytest.raises(Refused, match="another user"):
        actions.cancel(look, look.trials[:1])
    assert slurm == [] and not (sweep.folder / ".retry.lock").exists()


@as_root
def test_the_last_sweep_is_the_users_own(runs: Path, slurm: list[Any]) -> None:
    own = make(runs / "mine")
    os.utime(own.folder / "sweep.json", (1, 1))
    give_away(make(runs / "theirs"))
    assert find.sweep().folder == own.folder
    give_away(own)
    with pytest.raises(Refused, match="belong to other users"):
        find.sweep()


@as_root
def test_anothers_held_trials_are_left_alone(runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeued, "_SETTLED_S", 0.0)
    held = answers([queued(0, "PENDING", reason="BeginTime", restarts=1)])
    mine = make(runs / "mine")
    Watcher(mine, lambda sweep: held).first()
    assert slurm == [f"{ARRAY}_0"]
    Watcher(give_away(mine), lambda sweep: held).first()
    assert slurm == [f"{ARRAY}_0"]


# -- another's job -----------------------------------------------------------------------------------------------------


def test_a_number_that_slurm_has_given_to_another_job(
    runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sweep = dated(make(runs / "s"), LAST_YEAR)
    held = {"reason": "BeginTime", "restarts": 0}
    stranger = [queued(n, "PENDING", **held) for n in range(3)]
    monkeypatch.setattr(
        client, "squeue", lambda *ids, **how: stranger
    )  # by hand: the sweep's jobs have no name of its own
    look = states.look(sweep)
    assert [state.state for state in look.trials] == ["FAILED"] * 3
    assert "to another job" in look.trials[0].reason and "deleted" not in table(look)
    assert main(["cancel", "-y", str(sweep.folder)]) == 0 and slurm == []
    ours = [queued(0, "RUNNING", restarts=2), queued(1, "RUNNING", submitted=None)]
    monkeypatch.setattr(client, "squeue", lambda *ids, **how: ours)
    assert [state.state for state in states.look(sweep).trials][:2] == ["RUNNING"] * 2, "a requeue is a new submission"


def named(sweep: Sweep) -> Sweep:
    """The sweep with jobs named as a submission names them."""
    data = json.loads((sweep.folder / "sweep.json").read_text())
    data["jobs"][0]["name"] = f"tune-{data['id']}"
    (sweep.folder / "sweep.json").write_text(json.dumps(data))
    return Sweep.load(sweep.folder)


@pytest.mark.parametrize("restarts", [0, 3])
def test_the_name_and_the_user_decide_where_the_time_cannot(
    runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    """Of today's jobs with last year's numbers, 0 was requeued and is the sweep's; 1 and 2 are others."""
    sweep = named(dated(make(runs / "s"), LAST_YEAR))
    rows = [queued(n, "RUNNING", restarts=restarts) for n in range(3)]
    asked: list[dict[str, Any]] = []

    def squeue(ids: list[int], **how: Any) -> list[Any]:
        asked.append(how)
        return rows[:1] if how.get("name") else rows

    monkeypatch.setattr(client, "squeue", squeue)
    look = states.look(sweep)
    assert [state.state for state in look.trials] == ["RUNNING", "FAILED", "FAILED"]
    assert asked[1] == {"name": f"tune-{sweep.data['id']}", "user": sweep.data["user"], "ended": True}
    actions.cancel(look, actions.to_cancel(look, []).chosen)
    assert slurm == [[f"{ARRAY}_0"]]
    asked.clear()
    states.look(named(make(runs / "new")))
    assert len(asked) == 1, "the usual sweep is one question"


def test_the_accounting_is_asked_for_jobs_of_this_name(
    runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[Any] = []
    monkeypatch.setattr(client, "sacct", lambda ids, name: names.append(name) or [])
    sweep = named(make(runs / "s"))
    states.look(sweep)
    assert names == [f"tune-{sweep.data['id']}"]


def test_a_lost_id_of_a_sweep_with_quotes_in_its_name(runs: Path, slurm: list[Any]) -> None:
    sweep = make(runs / "s", array=None)
    sweep.record_job("slurm", "", range(3), script="0.sbatch", name="it's")
    assert [state.state for state in states.look(sweep).trials] == ["UNSUBMITTED"] * 3


def test_a_job_on_another_cluster_of_the_federation_is_no_failure(runs: Path, slurm: list[Any]) -> None:
    look = states.join(make(runs / "s", 1), answers([queued(0, "REVOKED")]))
    assert look.trials[0].state == "RUNNING" and "federation" in look.trials[0].reason
    assert actions.to_retry(look, [], only_failed=False).chosen == []


def test_a_job_of_another_cluster(runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(client, "cluster_name", lambda: "Blue")
    sweep = make(runs / "s")
    (sweep.folder / "slurm" / "0.id").write_text("Willkommen, \udcdcbermut\n69;green\n", errors="surrogateescape")
    look = states.look(sweep)
    assert [state.state for state in look.trials] == ["UNKNOWN"] * 3 and "squeue -M green" in look.trials[0].reason
    assert main(["cancel", "-y", str(sweep.folder)]) == 2 and "scancel -M green" in capsys.readouterr().err
    assert main(["retry", "-y", str(sweep.folder)]) == 1 and slurm == [], "it may run there"
    (sweep.folder / "slurm" / "0.id").write_text("69;blue\n")
    monkeypatch.setattr(client, "squeue", lambda *ids, **how: [queued(0, "RUNNING")])
    assert states.look(sweep).trials[0].state == "RUNNING"


def test_a_process_that_is_no_launcher_gets_no_signal(runs: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        look = states.look(local(runs / "s", process.pid))
        with pytest.raises(Refused, match="not a Python process of yours"):
            actions.cancel(look, look.trials)
        assert process.poll() is None
        process.kill()


def test_watch_goes_on_where_slurm_will_not_update(
    runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(rows: object) -> list[str]:
        raise SlurmError(Answer(("scontrol", "update"), 1, "", "Job update not available right now", 0.1))

    monkeypatch.setattr(requeued, "start_held", fails)
    held = answers([queued(0, "PENDING", reason="BeginTime", restarts=1)])
    look = Watcher(make(runs / "s"), lambda sweep: held).first()
    assert look.trials[0].state == "WAITING"
    assert any("not available right now" in trouble for trouble in look.answers.troubles)


# -- which sweep, which trials -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["cancel", "retry"])
def test_a_reversed_range_is_not_all_trials(runs: Path, slurm: list[Any], command: str, capsys: Any) -> None:
    make(runs / "s", 6)
    assert main([command, "-y", "4-2"]) == 2 and "write 2-4" in capsys.readouterr().err
    assert slurm == []


@pytest.mark.parametrize("content", ['{"form', '{"format": 99}', "[]", '{"format": 1}', "[" * 100_000])
def test_a_sweep_that_cannot_be_read_hides_no_other(runs: Path, content: str, capsys: Any) -> None:
    sweep = make(runs / "tune" / "one")
    (runs / "tune" / "broken").mkdir()
    (runs / "tune" / "broken" / "sweep.json").write_text(content)
    for what in (str(ARRAY), "tune", sweep.data["id"]):
        assert find.sweep(what).folder == sweep.folder
        assert "broken" in capsys.readouterr().err
    with pytest.raises(Refused, match="broken"):
        find.sweep("broken")


def test_an_experiment_may_be_called_by_a_number(runs: Path) -> None:
    trials = [(["a=1"], {})]
    sweep = Sweep.create(runs / "x" / "s", command=[], experiment={"name": "2024"}, trials=trials)
    assert find.sweep("2024").folder == sweep.folder
    numbered = Sweep.create(runs / "y" / "t", command=[], experiment={"name": 2025}, trials=trials)
    assert find.sweep("2025").folder == numbered.folder
    with pytest.raises(Refused, match="has submitted this array"):
        find.sweep("2026")


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "agreed"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_pipe_behind_cancel_asks_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, typed: str, agreed: bool
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(typed))
    assert cancel.agreed("cancel all?") is agreed, "stdout is no terminal here"
    assert "cancel all? [y/N]" in capsys.readouterr().err


# -- odd things in the folder ------------------------------------------------------------------------------------------


def test_a_trial_whose_folder_was_deleted(runs: Path, slurm: list[Any], capsys: Any) -> None:
    sweep = make(runs / "s")
    (sweep.folder / "1" / "config.yaml").unlink()
    (sweep.folder / "1").rmdir()
    assert main(["status", str(sweep.folder)]) == 1 and "its folder was deleted" in capsys.readouterr().out
    assert main(["retry", "-y", "1"]) == 1 and "has no folder any more" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "starts.jsonl", "log/lock", "log/69.0_0_log.out"])
def test_what_is_no_file_is_not_read(runs: Path, slurm: list[Any], kind: str, name: str) -> None:
    sweep = make(runs / "s")
    secret = runs / "secret"
    secret.write_text('{"seconds": 5, "time": 1, "phase": "secret"}\n')
    (sweep.folder / "0" / "log").mkdir()
    path = sweep.folder / "0" / name
    os.mkfifo(path) if kind == "fifo" else path.mkdir() if kind == "folder" else path.symlink_to(secret)
    looks: list[str] = []
    thread = threading.Thread(target=lambda: looks.append(table(states.look(sweep))), daemon=True)
    thread.start()
    thread.join(10)
    assert len(looks) == 1 and "secret" not in looks[0] and " done" not in looks[0]


def test_a_lock_that_is_a_link_leaves_its_target(runs: Path, slurm: list[Any]) -> None:
    sweep = make(runs / "s")
    precious = runs / "precious.txt"
    precious.write_text("precious")
    (sweep.folder / ".retry.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"), actions.one_retry(sweep):
        pass
    (sweep.folder / ".lock").unlink()
    (sweep.folder / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic"):
        sweep.record_job("slurm", "1", [0])
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "line",
    [
        {"step": "x", "train/loss": 1.0},
        {"train/loss": 1.0},
        {"step": 1, "max_steps": "many", "train/loss": 1.0},
        {"step": 1e400, "train/loss": 1.0},
    ],
)
def test_odd_metrics_are_left_out(runs: Path, slurm: list[Any], line: dict[str, Any]) -> None:
    sweep = make(runs / "s")
    good = {"time": time.time(), "step": 7, "max_steps": 9, "train/loss": 0.5}
    lines = [json.dumps({"time": time.time(), **line}), json.dumps(good)]
    (sweep.folder / "0" / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    assert (sweep.trials[0].progress().step, sweep.trials[0].progress().loss) == (7, 0.5)


# -- showing never ends anything ---------------------------------------------------------------------------------------

HOSTILE = "++data.train=[/d/a.jsonl],\x1b]52;c;aGk=\x07\x9b2J"


def hostile(runs: Path) -> list[TrialState]:
    trials = [([HOSTILE, f"n={number}"], {}) for number in range(2)]
    trials[1] = (["++data.train=[/d/b.jsonl]", "n=1"], {})
    sweep = Sweep.create(runs / "s", command=[], experiment={"name": "\x1b[2J"}, trials=trials)
    state = states.look(sweep).trials
    return [replace(one, state="FAILED", error="\x1b]0;title\x07 [/no] [bold]") for one in state]


def test_text_of_trials_is_no_markup_and_moves_no_cursor(runs: Path) -> None:
    failed = hostile(runs)
    console = Console(width=200, file=io.StringIO(), no_color=True, force_terminal=False)
    view = TableView([state.trial for state in failed], io.StringIO())
    console.print(view.draw(failed))
    console.print(rows_table(failed, view.labels, console))
    lines = io.StringIO()
    LineView([state.trial for state in failed], lines)(failed)
    look = states.look(Sweep.load(runs / "s"))
    plain = table(states.Look(look.sweep, failed, look.answers), width=200)
    for text in (console.file.getvalue(), lines.getvalue(), plain):  # type: ignore[attr-defined]
        assert "[/d/a.jsonl]" in text and "[/no] [bold]" in text
        assert not {"\x1b", "\x07", "\x9b"} & set(text)


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads this")


def test_a_view_that_nobody_reads_ends_nothing(runs: Path, capsys: Any) -> None:
    failed = hostile(runs)
    with LineView([state.trial for state in failed], Closed()) as view:
        view(failed)
        view(failed)
    assert capsys.readouterr().err.count("the trials go on") == 1


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_the_letter(runs: Path, encoding: str) -> None:
    sweep = make(runs / ("long" * 40))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "launcher", "status", str(sweep.folder)]
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode in (1, 3) and b"Traceback" not in done.stderr and b"?" in done.stdout


def test_a_disk_that_does_not_answer_for_a_moment(
    runs: Path, slurm: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make(runs / "s", 1)
    metrics = sweep.folder / "0" / "metrics.jsonl"
    metrics.write_text('{"time": 1, "phase": "training"}\n')
    opened = os.open

    def stale(path: Any, *how: Any, **more: Any) -> int:
        if str(path) == str(metrics):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *how, **more)

    assert sweep.trials[0].progress().phase == "training"
    monkeypatch.setattr(os, "open", stale)
    assert sweep.trials[0].progress().phase == "" and Losses().of(metrics.parent) == []
