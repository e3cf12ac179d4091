"""The mechanics of running trials: real processes through real submitit, a small function in the place of training."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher.local import process
from launcher.local import run as local
from launcher.local.run import RunStopped
from launcher.machine import Machine
from launcher.status.live import LineView
from launcher.status.trial_state import TrialState
from launcher.sweep.folder import Sweep
from tests import configs
from tests.unit.test_machine import MACHINE, need

ROOT = Path(__file__).resolve().parents[3]

# What stands in for training, imported in each rank: the trial's config says how it is to behave.
STAND_IN = """
import json, os, signal, socket, sys, time
from pathlib import Path
from launcher.findings import Finding, Refused
from launcher.sweep.trial import Trial

def train(folder):
    rank = int(os.environ["RANK"])
    behave = Trial(0, (), None, folder).config()["model"]["behave"]
    (folder / f"rank{rank}.json").write_text(json.dumps({"pid": os.getpid(), **os.environ}))
    mode = behave.get(str(rank), behave.get("all", "work"))
    if mode == "raise":
        raise ValueError(f"the loss is nan\\nsecond line")
    if mode == "refuse":
        raise Refused([Finding("data.jsonl:3", "", "is not JSON")])
    if mode == "exit":
        sys.exit(3)
    if mode == "vanish":
        print("RuntimeError: said before leaving", flush=True); os._exit(3)
    if mode == "kill":
        time.sleep(0.3); os.kill(os.getpid(), signal.SIGKILL)
    if mode == "segfault":
        import ctypes; ctypes.string_at(0)
    if mode == "nothing":
        return
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)
    if mode == "child":
        import subprocess; subprocess.Popen(["sleep", "600"]); time.sleep(600)
    if mode == "leave":
        import subprocess; subprocess.Popen(["sleep", "600"])
    if mode == "hang":
        time.sleep(600)
    began = time.time()
    time.sleep(behave.get("seconds", 0.3))
    if rank == 0:
        (folder / "result.json").write_text(json.dumps({"seconds": 1.0, "began": began, "ended": time.time()}))
    if mode == "late":
        raise OSError("the disk is gone")
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "standin_train.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def make(tmp_path: Path, *behave: Mapping[str, Any], ranks: int = 1, after_training: bool = False) -> Sweep:
    trials = [
        (
            [f"++model.dpo.ref_policy_kl_penalty={number + 1}"],
            configs.plain(
                ("cluster=local", "model=tiny", "data=sample", f"trainer.devices={ranks}", "trainer.accelerator=cpu"),
                {
                    "model.dpo.ref_policy_kl_penalty": number + 1.0,
                    "model.behave": dict(what),
                    "evaluation.after_training": after_training,
                    "cluster.memory_gb_per_rank": None,
                },
            ),
        )
        for number, what in enumerate(behave)
    ]
    # Spaces, quotes and what a shell would run: none of it may matter.
    return Sweep.create(tmp_path / "a 'b' $(false)" / "s", command=[], experiment={}, trials=trials)


def run(sweep: Sweep, **more: Any) -> list[TrialState]:
    return local.run(sweep, **{"machine": MACHINE, "entry": "standin_train:train", "grace_s": 0.5, **more})


def processes_of(sweep: Sweep) -> list[str]:
    """Command lines of living processes whose environment or arguments name the sweep's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            text = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if str(sweep.folder).encode() in text and state not in "ZX" and int(path.name) != os.getpid():
            found.append(f"{path.name} {text[-200:]!r}")
    return found


def until(what: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_ranks_know_each_other_and_logs_are_kept(tmp_path: Path) -> None:
    sweep = make(tmp_path, {}, ranks=2)
    (outcome,) = run(sweep)
    assert outcome.state == "DONE" and not outcome.error and outcome.log and outcome.log.parent.name == "log"
    told = [json.loads((sweep.folder / "0" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for rank, env in enumerate(told):
        assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (str(rank),) * 2 + (
            "2",
        ) * 2
        assert env["MASTER_ADDR"] == "127.0.0.1" and env["NODE_RANK"] == "0"
        assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "2", "alone on four cores"
    assert told[0]["MASTER_PORT"] == told[1]["MASTER_PORT"]
    assert sorted(path.name for path in (sweep.folder / "0" / "log").glob("*.out")) == [
        "local1_0_log.out",
        "local1_1_log.out",
    ]
    assert not list((sweep.folder / "0" / "log").glob("*.pkl"))
    assert Sweep.load(sweep.folder).jobs[0].kind == "local" and Sweep.load(sweep.folder).jobs[0].trials == [0]
    assert sweep.trials[0].progress().phase == "starting"
    assert not processes_of(sweep)


def test_what_is_done_is_not_run_again_and_attempts_keep_their_logs(tmp_path: Path) -> None:
    sweep = make(tmp_path, {}, {"all": "raise"})
    first = run(sweep)
    assert [outcome.state for outcome in first] == ["DONE", "FAILED"]
    old = first[1].log and first[1].log.read_bytes()
    second = run(sweep)
    assert [outcome.state for outcome in second] == ["DONE", "FAILED"]
    assert second[0].log is None and second[0].elapsed == 1.0
    assert second[1].log and second[1].log.name == "local2_0_log.out"
    assert first[1].log and first[1].log.read_bytes() == old
    assert [job.trials for job in Sweep.load(sweep.folder).jobs] == [[0, 1], [1]]


@pytest.mark.parametrize("slots", [1, 2])
def test_no_more_than_slots_run_at_once(tmp_path: Path, slots: int) -> None:
    sweep = make(tmp_path, {}, {}, {})
    most = 0

    def watch(outcomes: list[TrialState]) -> None:
        nonlocal most
        most = max(most, sum(outcome.state == "RUNNING" for outcome in outcomes))

    assert [outcome.state for outcome in run(sweep, slots=slots, on_update=watch)] == ["DONE"] * 3
    spans = [(result["began"], result["ended"]) for trial in sweep.trials if (result := trial.result())]
    at_once = max(sum(began <= start < ended for began, ended in spans) for start, _ in spans)
    assert at_once <= most == slots
    ports = [json.loads((trial.folder / "rank0.json").read_text())["MASTER_PORT"] for trial in sweep.trials]
    assert slots == 1 or ports[0] != ports[1]


FAILURES: list[tuple[dict[str, str], str, str]] = [
    ({"0": "hang", "1": "raise"}, "ValueError: the loss is nan; rank 1: exit code 1", "local1_1_log.out"),
    ({"0": "raise", "1": "hang"}, "ValueError: the loss is nan; rank 0: exit code 1", "local1_0_log.out"),
    ({"0": "deaf", "1": "kill"}, "rank 1: killed by SIGKILL", "local1_1_log.out"),
    ({"0": "hang", "1": "segfault"}, "rank 1: killed by SIGSEGV", "local1_1_log.out"),
    ({"0": "hang", "1": "refuse"}, "data.jsonl:3: is not JSON; rank 1: exit code 1", "local1_1_log.out"),
    ({"all": "nothing"}, "all ranks exited with 0, but left no result.json", "local1_0_log.out"),
    ({"0": "exit", "1": "hang"}, "SystemExit: 3; rank 0: exit code 3", "local1_0_log.out"),
    ({"0": "vanish", "1": "hang"}, "RuntimeError: said before leaving; rank 0: exit code 3", "local1_0_log.out"),
]


def test_a_rank_that_fails_ends_the_others_and_is_named(tmp_path: Path) -> None:
    sweep = make(tmp_path, *(behave for behave, _, _ in FAILURES), ranks=2)
    outcomes = run(sweep, slots=4)
    assert not processes_of(sweep)
    for outcome, (_, error, log) in zip(outcomes, FAILURES, strict=True):
        assert outcome.state == "FAILED" and outcome.remark.startswith(error), outcome.remark
        assert outcome.log and outcome.log.name == log and outcome.log.exists()


def test_a_missing_module_is_told_from_the_log(tmp_path: Path) -> None:
    (outcome,) = run(make(tmp_path, {}), entry="no_such_module:train")
    assert outcome.state == "FAILED" and "No module named 'no_such_module'" in outcome.remark


def test_a_result_counts_even_if_the_end_was_rough(tmp_path: Path) -> None:
    (outcome,) = run(make(tmp_path, {"all": "late"}))
    assert outcome.state == "DONE" and outcome.error == "after its result was written: OSError: the disk is gone"


def test_what_a_rank_leaves_running_is_ended(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"all": "leave"})
    assert run(sweep)[0].state == "DONE"
    assert not processes_of(sweep)


def test_a_trial_is_run_by_one_launcher_at_a_time(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"seconds": 3})
    other = start_launcher(sweep)
    until(lambda: (sweep.folder / "0" / "rank0.json").exists())
    (outcome,) = run(sweep)
    assert (outcome.state, outcome.remark) == ("FAILED", "another launcher runs it")
    assert other.wait(20) == 0 and sweep.trials[0].result() is not None


def test_an_error_in_the_view_leaves_nothing_running(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"all": "hang"})

    def broken(outcomes: list[TrialState]) -> None:
        if (sweep.folder / "0" / "rank0.json").exists():
            raise BrokenPipeError("nobody reads this")

    with pytest.raises(BrokenPipeError):
        run(sweep, on_update=broken)
    assert not processes_of(sweep)


def test_a_view_that_nobody_reads_ends_no_trial(tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("nobody reads this")

    sweep = make(tmp_path, {})
    with LineView(sweep.trials, Closed()) as view:
        assert [state.state for state in run(sweep, on_update=view)] == ["DONE"]


# --- being stopped: a launcher of its own, as from a shell ---

LAUNCHER = """
import sys
from launcher.local import run as local
from launcher.machine import Machine
from launcher.sweep.folder import Sweep

machine = Machine(cores=4, memory_gb=64.0)
try:
    outcomes = local.run(Sweep.load(sys.argv[1]), slots=2, machine=machine, entry="standin_train:train", grace_s=1.0)
except local.RunStopped as stopped:
    print(stopped)
    print([outcome.state for outcome in stopped.states])
    sys.exit(stopped.exit_code)
sys.exit(any(outcome.state != "DONE" for outcome in outcomes))
"""


def start_launcher(sweep: Sweep, *prefix: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
    command = [*prefix, sys.executable, "-c", LAUNCHER, str(sweep.folder)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def running(sweep: Sweep, trials: int, ranks: int) -> bool:
    return len(list(sweep.folder.glob("[0-9]/rank*.json"))) == trials * ranks


@pytest.mark.parametrize(
    ("signum", "mode"),
    [
        (signal.SIGINT, "hang"),
        (signal.SIGTERM, "deaf"),
        (signal.SIGHUP, "child"),
    ],
)
def test_a_signal_stops_everything(tmp_path: Path, signum: signal.Signals, mode: str) -> None:
    sweep = make(tmp_path, {"all": mode}, {"all": "hang"}, {}, ranks=2)
    launcher = start_launcher(sweep)
    until(lambda: running(sweep, trials=2, ranks=2))
    os.killpg(launcher.pid, signum)  # as a terminal does: to the whole foreground group
    out, _ = launcher.communicate(timeout=15)
    assert not processes_of(sweep)
    assert launcher.returncode == 128 + signum, out
    assert f"stopped by {signum.name}; ended while running: trial 0 (beta 1), 1 (beta 2); never started: trial 2" in out
    assert "['CANCELLED', 'CANCELLED', 'CANCELLED']" in out


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"all": "deaf"})
    env_grace = LAUNCHER.replace("grace_s=1.0", "grace_s=60.0")
    launcher = subprocess.Popen(
        [sys.executable, "-c", env_grace, str(sweep.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])},
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: running(sweep, trials=1, ranks=1))
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 130 and not processes_of(sweep)


def test_nohup_is_respected(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"seconds": 2})
    launcher = start_launcher(sweep, "nohup")
    until(lambda: running(sweep, trials=1, ranks=1))
    os.killpg(launcher.pid, signal.SIGHUP)
    launcher.communicate(timeout=15)
    assert launcher.returncode == 0 and sweep.trials[0].result() is not None


@pytest.mark.parametrize("mode", ["deaf", "early"])
def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path: Path, mode: str) -> None:
    sweep = make(tmp_path, {"all": "deaf"}, {"all": "deaf"}, ranks=2)
    launcher = start_launcher(sweep)
    if mode == "early":  # while Python is still starting
        until(lambda: (sweep.folder / "1" / "log").exists())
    else:
        until(lambda: running(sweep, trials=2, ranks=2))
        assert processes_of(sweep)
    launcher.kill()
    launcher.communicate()
    until(lambda: not processes_of(sweep), seconds=10)


def test_no_rank_outlives_its_controller(tmp_path: Path) -> None:
    sweep = make(tmp_path, {"all": "deaf"}, ranks=2)
    launcher = start_launcher(sweep)
    until(lambda: running(sweep, trials=1, ranks=2))
    rank = json.loads((sweep.folder / "0" / "rank0.json").read_text())
    os.kill(int(rank["LAUNCHER_PARENT_PID"]), signal.SIGKILL)
    launcher.communicate(timeout=10)
    assert launcher.returncode == 1 and not processes_of(sweep)


# --- sharing out the machine ---


def test_threads_and_gpus_are_shared_out(tmp_path: Path) -> None:
    sweep = make(tmp_path, {}, {}, {})
    for trial in sweep.trials:
        text = (trial.folder / "config.yaml").read_text()
        (trial.folder / "config.yaml").write_text(text.replace("accelerator: cpu", "accelerator: auto"))
    outcomes = run(sweep, machine=Machine(4, 64.0, ("GPU-a", "GPU-b")))
    assert [outcome.state for outcome in outcomes] == ["DONE"] * 3
    told = [json.loads((trial.folder / "rank0.json").read_text()) for trial in sweep.trials]
    assert [env["OMP_NUM_THREADS"] for env in told[:2]] == ["2", "2"]
    assert {env["CUDA_VISIBLE_DEVICES"] for env in told[:2]} == {"GPU-a", "GPU-b"}


def test_a_last_trial_waits_for_the_cores_of_one_that_is_nearly_done(tmp_path: Path) -> None:
    sweep = make(tmp_path, {}, {}, {})
    runner = local._Runner(sweep.trials, "host:1", None, None, 1.0, Machine(2, 64.0), "", {})
    runner.waiting = [sweep.trials[2]]
    runner.durations = [100.0]
    none: Any = None
    runner.running = [local._Running(sweep.trials[1], need(), "local1", none, none, ())]

    def eta(seconds: float) -> None:
        now = time.time()
        lines = [{"time": now - 10 + n, "step": n, "max_steps": 10 + seconds, "train/loss": 0.6} for n in range(11)]
        (sweep.trials[1].folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert not runner._better_wait(need(), slots=2), "nothing is known of the other one yet"
    eta(60)
    assert not runner._better_wait(need(), slots=2)
    eta(15)
    assert runner._better_wait(need(), slots=2)
    assert not runner._better_wait(need(ranks=2), slots=2), "it could not use more cores"
    runner.waiting = [sweep.trials[0], sweep.trials[2]]
    assert not runner._better_wait(need(), slots=2), "it is not the last"


def test_foreign_ranks_are_not_believed_and_own_threads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "8", "RANK": "3", "OMP_NUM_THREADS": "7"}.items():
        monkeypatch.setenv(name, value)
    env = process.environment(threads=2, gpus=None, grace_s=1)
    assert "SLURM_NTASKS" not in env and "RANK" not in env and env["OMP_NUM_THREADS"] == "7"
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_idle_threads_leave_their_core_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def spins(**env: str) -> str | None:
        with monkeypatch.context() as patch:
            for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                patch.delenv(name, raising=False)
            for name, value in env.items():
                patch.setenv(name, value)
            return process.environment(threads=2, gpus=None, grace_s=1).get("GOMP_SPINCOUNT")

    assert int(spins() or 0) < 10_000 and spins(GOMP_SPINCOUNT="7") == "7" and spins(OMP_WAIT_POLICY="active") is None


def test_stopped_says_what_became_of_each_trial(tmp_path: Path) -> None:
    trials = make(tmp_path, {}, {}).trials
    states = [
        TrialState(trial=trials[0], state="DONE"),
        TrialState(trial=trials[1], state="CANCELLED", log=tmp_path),
    ]
    stopped = RunStopped(signal.SIGINT, states)
    assert stopped.exit_code == 130
    assert str(stopped) == "stopped by SIGINT; ended while running: trial 1 (beta 2); no process is left running"
