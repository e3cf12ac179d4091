"""What a trial's state is said to be, for every combination of Slurm's word and what lies in the folder."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.findings import Refused
from launcher.slurm import client, reasons
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.slurm.state_words import STATES
from launcher.status import states
from launcher.status.answers import Answers
from launcher.status.table import table
from launcher.status.trial_state import Look, TrialState
from launcher.submit import actions
from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from launcher.terminal import cut
from launcher.units import when

ARRAY = 69


def queued(index: int, word: str, **more: Any) -> QueueRow:
    row = QueueRow(
        job_id=ARRAY + index, array_id=ARRAY, task_id=index, state=STATES[word], reason="", submitted=time.time(),
        started=None, elapsed=0.0, limit=3600.0, restarts=0, node_count=2, nodes="", partition="main",
    )  # fmt: skip
    return replace(row, **more)


def accounted(index: int, word: str, **more: Any) -> AccountRow:
    row = AccountRow(
        job_id=ARRAY + index, array_id=ARRAY, task_id=index, state=STATES[word], exit_code=0, exit_signal=0,
        derived_exit_code=0, derived_signal=0, submitted=1.0, started=2.0, ended=65.0, elapsed=63.0, limit=3600.0,
        node_count=2, nodes="node[1-2]", partition="main", account="a", qos="q", allocated={}, reason="",
    )  # fmt: skip
    return replace(row, **more)


def make(folder: Path, trials: int = 3, array: int | None = ARRAY) -> Sweep:
    configs = [([f"++lr={n}"], {"model": {"dpo": {"ref_policy_kl_penalty": n / 10}}}) for n in range(trials)]
    sweep = Sweep.create(folder, command=["x"], experiment={"name": "tune"}, trials=configs)
    if array is not None:
        (folder / "slurm").mkdir()
        (folder / "slurm" / "0.id").write_text(f"{array}\n")
        sweep.record_job("slurm", "", range(trials), script="0.sbatch", name="tune")
    return sweep


def log(sweep: Sweep, trial: int, text: str = "hello\n", name: str = f"{ARRAY}.0", rank: int = 0) -> Path:
    path = sweep.trials[trial].folder / "log" / f"{name}_{rank}_log.out"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def done(sweep: Sweep, trial: int) -> None:
    (sweep.trials[trial].folder / "result.json").write_text('{"seconds": 12.0}')


def answers(
    queue: list[QueueRow] | None, account: list[AccountRow] | None = None, troubles: tuple[str, ...] = ()
) -> Answers:
    by_name = None if queue is None else {row.name: row for row in queue}
    return Answers(time.time(), by_name, None if account is None else {row.name: row for row in account}, troubles)


def one(
    sweep: Sweep,
    queue: list[QueueRow] | None,
    account: list[AccountRow] | None = None,
    troubles: tuple[str, ...] = (),
) -> TrialState:
    return states.join(sweep, answers(queue, account, troubles)).trials[0]


@pytest.mark.parametrize(
    ("queue", "account", "state", "reason"),
    [
        ([queued(0, "PENDING", reason="Priority")], None, "WAITING", "others come first (Priority)"),
        (
            [queued(0, "PENDING", reason="launch failed requeued held")],
            None,
            "WAITING",
            "could not be started and is held; `scontrol release` lets it go",
        ),
        ([queued(0, "PENDING", reason="Something new")], None, "WAITING", "Something new"),
        ([queued(0, "PENDING", reason="QOSMaxJobsPerUserLimit")], None, "WAITING", "the limit of its QoS is reached"),
        ([queued(0, "PENDING", reason="BeginTime", restarts=1)], None, "WAITING", "was requeued"),
        ([queued(0, "REQUEUE_HOLD")], None, "WAITING", "went back into the queue and is held; `scontrol release`"),
        ([queued(0, "RUNNING")], None, "RUNNING", ""),
        ([queued(0, "SUSPENDED")], None, "RUNNING", "is suspended"),
        ([queued(0, "COMPLETING")], None, "STOPPING", ""),
        ([queued(0, "COMPLETED")], [], "FAILED", "Slurm says it ended well, but it left no result.json"),
        ([], [accounted(0, "COMPLETED")], "FAILED", "Slurm says it ended well, but it left no result.json"),
        ([], [accounted(0, "TIMEOUT")], "FAILED", "reached its time limit of 1:00:00"),
        ([], [accounted(0, "TIMEOUT", limit=math.inf)], "FAILED", "reached its time limit"),
        ([], [accounted(0, "NODE_FAIL")], "FAILED", "a node failed (node[1-2])"),
        ([], [accounted(0, "PREEMPTED")], "FAILED", "had to make room for another job"),
        ([], [accounted(0, "FAILED", exit_code=3)], "FAILED", "exit code 3"),
        ([], [accounted(0, "FAILED", exit_code=139)], "FAILED", "a rank was killed by SIGSEGV"),
        ([], [accounted(0, "FAILED", exit_code=255)], "FAILED", "exit code 255"),
        ([], [accounted(0, "FAILED", exit_code=9, derived_signal=9)], "FAILED", "a rank was killed by SIGKILL"),
        ([], [accounted(0, "CANCELLED")], "CANCELLED", "cancelled after 1:03"),
        ([], [accounted(0, "CANCELLED", nodes="")], "CANCELLED", "cancelled before it started"),
        ([], [accounted(0, "RUNNING")], "FAILED", "is no longer in the queue; it is not known how it ended"),
        ([queued(0, "FAILED")], [accounted(0, "RUNNING")], "FAILED", "ended with another exit code than 0"),
        ([queued(1, "RUNNING")], [], "CANCELLED", "cancelled before it started (Slurm keeps no record of that)"),
        ([], [], "CANCELLED", "cancelled before it started (Slurm keeps no record of that)"),
        ([], None, "FAILED", "has ended without a result; the accounting, which knows how, does not answer"),
        (None, None, "UNKNOWN", "Slurm does not answer"),
        (None, [], "UNKNOWN", "Slurm does not answer"),
        (None, [accounted(0, "RUNNING")], "RUNNING", "according to the accounting; squeue does not answer"),
        (None, [accounted(0, "PENDING")], "WAITING", "according to the accounting; squeue does not answer"),
        (None, [accounted(0, "TIMEOUT")], "FAILED", "reached its time limit"),
    ],
)
def test_slurms_word(
    tmp_path: Path, queue: list[QueueRow] | None, account: list[AccountRow] | None, state: str, reason: str
) -> None:
    sweep = make(tmp_path / "s")
    seen = one(sweep, queue, account)
    assert seen.state == state and seen.reason.startswith(reason) and bool(seen.reason) == bool(reason), seen.reason
    done(sweep, 0)
    assert one(sweep, queue, account).state == "DONE", "the result has the last word"


def test_of_trials_that_share_a_job(tmp_path: Path) -> None:
    """What became of a start counts for its job, and the jobs that continue it, not for that of a retry."""
    sweep = make(tmp_path / "s", 2, array=None)
    (sweep.folder / "slurm").mkdir()
    (sweep.folder / "slurm" / "0.id").write_text(f"{ARRAY}\n")
    sweep.record_job("slurm", "", [0, 1], script="0.sbatch", name="tune", share=2)
    start = starts.Start(name="69.0", chain="69_0", nodes="n1", began=1.0, first_step=0)
    for trial, then in enumerate(["gave up: ValueError: no", "requeued"]):
        log(sweep, trial, name="69.0")
        starts.began(sweep.trials[trial].folder, start)
        starts.ended(sweep.trials[trial].folder, "69.0", "failure", "ValueError: no", 0, then)
    (sweep.folder / "slurm" / "69_0.out").write_text("gives up: ran out of memory\n")  # of another trial
    (sweep.trials[0].folder / "log" / "69.0_srun.out").write_text("srun: error: n1: task 0: Exited with exit code 1\n")
    running = answers([queued(0, "RUNNING")])
    seen = [(state.state, state.error) for state in states.join(sweep, running).trials]
    assert seen == [("FAILED", "Exited with exit code 1"), ("WAITING", "")]
    starts.ended(sweep.trials[1].folder, "69.0", "cancelled", "cancelled", 0)
    again = answers([queued(0, "PENDING", reason="BeginTime", restarts=1)])
    assert [s.state for s in states.join(sweep, again).trials] == ["FAILED", "WAITING"], "Slurm has sent it back itself"
    starts.ended(sweep.trials[1].folder, "69.0", "failure", "no", 0, "gave up: no")
    (sweep.folder / "slurm" / "1.id").write_text("80\n")
    sweep.record_job("slurm", "", [0, 1], script="1.sbatch", name="tune", share=2)
    retried = answers([queued(0, "COMPLETED"), queued(0, "PENDING", array_id=80)])
    assert [(s.state, s.job) for s in states.join(sweep, retried).trials] == [("WAITING", "80_0")] * 2


@pytest.mark.parametrize("word", [state.word for state in STATES.values() if state.ended])
def test_no_word_of_slurms_makes_a_trial_done(tmp_path: Path, word: str) -> None:
    sweep = make(tmp_path / "s", 1)
    for broken in (None, "", '{"seconds"', "[]"):
        if broken is not None:
            (sweep.trials[0].folder / "result.json").write_text(broken)
        look = states.join(sweep, answers([], [accounted(0, word)]))
        assert look.trials[0].state in ("FAILED", "CANCELLED") and look.exit_code == 1


def test_what_slurm_has_forgotten_and_what_left_a_trace(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 1)
    log(sweep, 0)
    state = one(sweep, [], [])
    assert (state.state, state.reason) == ("FAILED", f"has ended without a result; Slurm no longer knows job {ARRAY}_0")
    log(sweep, 0).unlink()
    (sweep.folder / "slurm" / f"{ARRAY}_0.out").touch()
    assert one(sweep, [], []).state == "FAILED", "its setup lines may have failed"


def test_exit_codes_and_counts(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s")
    done(sweep, 0)
    done(sweep, 1)
    assert states.join(sweep, answers([queued(2, "RUNNING")])).exit_code == 3
    assert states.join(sweep, answers(None)).exit_code == 3
    failed = states.join(sweep, answers([], [accounted(2, "FAILED", exit_code=3)]))
    assert failed.exit_code == 1 and failed.counts == {"DONE": 2, "FAILED": 1} and failed.trials[2].exit_code == "3:0"
    done(sweep, 2)
    assert states.join(sweep, answers(None)).exit_code == 0


def test_a_retry_counts_unless_an_earlier_element_lives(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 2)
    (sweep.folder / "slurm" / "1.id").write_text("70\n")
    sweep.record_job("slurm", "", [1], script="1.sbatch", name="tune")
    old, new = accounted(1, "FAILED"), accounted(0, "TIMEOUT", array_id=70)
    state = states.join(sweep, answers([], [old, new])).trials[1]
    assert (state.job, state.slurm) == ("70_0", "TIMEOUT")
    state = states.join(sweep, answers([queued(1, "RUNNING")], [new])).trials[1]
    assert (state.job, state.state) == (f"{ARRAY}_1", "RUNNING"), "requeued by hand"


def test_what_sbatch_never_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "squeue", lambda *ids, **how: [])
    sweep = make(tmp_path / "s", 2, array=None)
    assert [state.state for state in states.look(sweep).trials] == ["UNSUBMITTED"] * 2
    sweep.record_job("slurm", "", [0, 1], script="0.sbatch", name="tune")
    look = states.look(sweep)
    assert look.exit_code == 1 and look.trials[0].reason.startswith("sbatch returned no job id")


def test_an_array_that_sbatch_could_not_tell_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make(tmp_path / "s", 2, array=None)
    sweep.record_job("slurm", "", [0, 1], script="0.sbatch", name="tune-1")
    rows = [queued(0, "RUNNING"), queued(1, "PENDING")]

    def squeue(ids: object = None, **how: object) -> list[QueueRow]:
        assert ids == [ARRAY] or (how["name"] == "tune-1" and how["user"] == sweep.data["user"])
        return rows

    monkeypatch.setattr(client, "squeue", squeue)
    look = states.look(sweep)
    assert [(state.state, state.job) for state in look.trials] == [("RUNNING", "69_0"), ("WAITING", "69_1")]
    rows.clear()
    assert [state.state for state in states.look(sweep).trials] == ["UNSUBMITTED"] * 2


def test_a_retry_that_sbatch_refused_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make(tmp_path / "s", 1)
    sweep.record_job("slurm", "", [0], script="1.sbatch", name="tune")
    monkeypatch.setattr(client, "squeue", lambda *ids, **how: [])
    monkeypatch.setattr(client, "sacct", lambda ids, **how: [accounted(0, "TIMEOUT")])
    assert (states.look(sweep).trials[0].state, states.look(sweep).trials[0].slurm) == ("FAILED", "TIMEOUT")


def test_the_first_ranks_error_is_found(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 1)
    trace = "Traceback (most recent call last):\n  File x\nValueError: the loss is nan\n"
    followed = "Traceback (most recent call last):\n  File y\nRuntimeError: [gloo] Connection closed by peer\n"
    log(sweep, 0, followed, rank=0)
    log(sweep, 0, "step 1\n" + trace + "srun: error: node1: task 1: Exited\n", rank=1)
    state = one(sweep, [], [accounted(0, "FAILED", exit_code=1)])
    assert (state.error, state.rank) == ("ValueError: the loss is nan", 1)
    assert state.log and state.log.name == f"{ARRAY}.0_1_log.out"
    note = {"time": 5.0, "type": "OSError", "message": "no space", "traceback": "Traceback\nOSError: no space\n"}
    (sweep.folder / "0" / "log" / f"{ARRAY}.0_0_error.json").write_text(json.dumps(note))
    assert one(sweep, [], [accounted(0, "FAILED")]).error == "OSError: no space", "a rank's own note is surer"


def test_srun_names_the_first_rank(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 1)
    for rank in range(3):
        log(sweep, 0, f"I am {rank}\n", rank=rank)
    lines = ["srun: error: node1: task 0: Terminated", "srun: error: node2: tasks 2-3: Exited with exit code 3"]
    (sweep.folder / "slurm" / f"{ARRAY}_0.out").write_text("\n".join(lines))
    state = one(sweep, [], [accounted(0, "FAILED", exit_code=15, derived_signal=15)])
    assert (state.reason, state.rank, state.exit_code) == ("rank 2: Exited with exit code 3", 2, "15:0, steps 0:15")


def test_what_an_earlier_start_printed_is_no_reason(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 1)
    log(sweep, 0, "I am 0\n", rank=0)
    starts.began(sweep.folder / "0", starts.Start(f"{ARRAY}.0", f"{ARRAY}_0", "node1", 1.0, 0))
    earlier = ["== start 1.0 == trial 0", "slurmstepd: error: pyxis:     [ERROR] Could not process JSON input"]
    lines = [*earlier, f"== start {ARRAY}.0 == trial 0", "srun: error: node1: task 0: Segmentation fault"]
    (sweep.folder / "slurm" / f"{ARRAY}_0.out").write_text("\n".join(lines))
    assert one(sweep, [], [accounted(0, "FAILED", exit_code=11)]).reason == "rank 0: Segmentation fault"


def test_the_signal_by_which_scancel_ends_steps_is_no_exit_code() -> None:
    """24.11 and newer record it as the derived exit code (measured: 0:15)."""
    assert reasons.codes(accounted(0, "CANCELLED", derived_signal=15)) == "0:0"
    assert reasons.codes(accounted(0, "FAILED", exit_code=9, derived_signal=9)) == "9:0, steps 0:9"


def test_no_more_logs_are_searched_than_wanted(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 3)
    for number in range(3):
        log(sweep, number, "ValueError: x\n")
    rows = [accounted(number, "FAILED") for number in range(3)]
    look = states.join(sweep, answers([], rows), max_errors=2)
    assert [bool(state.error) for state in look.trials] == [True, True, False]


def test_one_question_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make(tmp_path / "s", 500)
    asked: list[tuple[str, list[int]]] = []

    def squeue(ids: list[int], ended: bool) -> list[QueueRow]:
        asked.append(("squeue", ids))
        return [queued(number, "RUNNING") for number in range(500)]

    monkeypatch.setattr(client, "squeue", squeue)
    monkeypatch.setattr(client, "sacct", lambda ids, **how: asked.append(("sacct", ids)) or [])
    assert states.look(sweep).counts == {"RUNNING": 500} and asked == [("squeue", [ARRAY])]
    for number in range(500):
        done(sweep, number)
    assert states.look(sweep).exit_code == 0 and len(asked) == 1, "what is done needs no question"


# -- what is done about it ---------------------------------------------------------------------------------------------


def test_only_what_ended_badly_is_run_again(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 6)
    done(sweep, 0)
    rows = [accounted(1, "FAILED"), accounted(2, "CANCELLED")]
    look = states.join(sweep, answers([queued(3, "RUNNING"), queued(4, "PENDING")], rows))
    look = Look(sweep, [*look.trials[:5], replace(look.trials[5], state="UNKNOWN")], look.answers)

    def chosen(*wanted: int, failed: bool = False) -> list[int]:
        plan = actions.to_retry(look, [sweep.trials[number] for number in wanted], failed)
        return [state.trial.number for state in plan.chosen]

    assert chosen() == [1, 2] and chosen(failed=True) == [1]
    assert chosen(0, 1, 3, 4, 5) == [1] and chosen(2) == [2] and chosen(0, 3, 4, 5) == []
    assert [state.trial.number for state in actions.to_cancel(look, []).chosen] == [3, 4, 5]
    assert len(actions.to_retry(look, sweep.trials, False).left) == 4, "and why not is said"


def test_scancel_gets_few_words(tmp_path: Path) -> None:
    names = [f"69_{number}" for number in range(1000) if number != 7] + ["70_3"]
    assert actions._arrays(names) == ["69_[0-6,8-999]", "70_3"]


def test_two_retries_at_once_are_refused(tmp_path: Path) -> None:
    sweep = make(tmp_path / "s", 1)
    with (
        actions.one_retry(sweep),
        pytest.raises(Refused, match="is retrying"),
        actions.one_retry(sweep),
    ):
        pass


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_table_fits(tmp_path: Path) -> None:
    sweep = make(tmp_path / ("a long name of a folder " * 4) / "s", 40)
    rows = [queued(number, "PENDING", reason="Resources", started=time.time() + 60) for number in range(1, 40)]
    log(sweep, 0)
    line = {"time": time.time(), "step": 4, "max_steps": 2000, "train/loss": 0.5, "train/acc": 0.75}
    (sweep.folder / "0" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    running = queued(0, "RUNNING", nodes="node[1-2]", elapsed=3000.0, started=3.0, restarts=1)
    look = states.join(sweep, answers([running, *rows], troubles=("sacct is away " * 20,)))
    for width in (80, 120, 200):
        lines = table(look, width).splitlines()
        assert max(map(len, lines)) <= width and len(lines) < 10, lines
        assert "4/2000" in lines[2] and "0.5000" in lines[2] and "running" in lines[2]
        assert "\x1b" not in table(look, width)
    assert any(text.startswith("1-39 waiting: waits for free nodes (Resources); expected") for text in lines)
    assert len(table(look, 80, full=True).splitlines()) > 40
    assert "\x1b[2mwaiting" in table(look, 80, colour=True)


def test_json_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make(tmp_path / "s", 1, array=None)
    log(sweep, 0)
    line = {"time": time.time(), "step": 1, "max_steps": 9, "train/loss": None}
    (sweep.folder / "0" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert main(["status", "--json", str(sweep.folder)]) == 1
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told["format"] == 1 and told["trials"][0]["state"] == "UNSUBMITTED" and told["trials"][0]["loss"] is None
    documented = sys.modules["launcher.commands.status"].__doc__ or ""
    assert [key for key in [*told, *told["trials"][0]] if key not in documented] == []


def test_reasons_for_all_words() -> None:
    for word, state in STATES.items():
        assert reasons.ended(accounted(0, word)), word
        assert isinstance(reasons.waiting(queued(0, word, state=state)), str)


def test_texts() -> None:
    assert cut("abcdef", 4) == "abc…" and cut("abcdefgh", 5, middle=True) == "a…fgh"
    noon = time.mktime((2026, 1, 5, 12, 0, 0, 0, 0, -1))
    assert when(noon + 3600, noon) == "13:00" and when(noon + 86400, noon).endswith(" 12:00")
    assert when(noon + 86400 * 30, noon) == "2026-02-04"


def test_metrics_for_notebooks(tmp_path: Path) -> None:
    import launcher

    sweep = make(tmp_path / "s", 1, array=None)
    trial = launcher.Sweep.load(sweep.folder).trials[0]  # type: ignore[attr-defined]
    assert len(trial.metrics()) == 0
    lines: list[dict[str, Any]] = [{"time": 1.0, "step": n, "train/loss": 1.0 - n / 10} for n in (1, 2, 3)]
    lines += [{"time": 2.0, "phase": "starting"}, {"time": 3.0, "step": 2, "train/loss": 0.5}]
    lines += [{"time": 4.0, "step": 2, "val/loss": 0.4}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"time": 5.0, "st'
    (trial.folder / "metrics.jsonl").write_text(text)
    table = trial.metrics()
    assert list(table.index) == [1, 2, 3] and list(table["train/loss"]) == [0.9, 0.5, 0.7]
    assert table.loc[2, "val/loss"] == 0.4 and len(trial.metrics_rows()) == 6
