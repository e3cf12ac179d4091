"""How a start ended, by what its ranks, srun and Slurm left; and what its script may do about it."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.job import begin_end, how_it_ended, slurm_job
from launcher.job.restart_rule import Ending
from launcher.job.slurm_job import JobRecord, OwnJob
from launcher.slurm import client
from launcher.sweep import bad_nodes, result_file, starts
from launcher.sweep.starts import Start

JOB = OwnJob(element="8_1", start_name="9.0", restarts=0, nodes="node[1-2]", chain="8_1", cluster="lab")
NOW = Start(name="9.0", chain="8_1", nodes="node[1-2]", began=0.0, first_step=0)
RUNNING = JobRecord("RUNNING", "None", 0, False, "", "", {"EndTime": "2030-01-01T00:00:00"})
SRUN = "srun: error: node2: task 1: Exited with exit code 1"


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """A trial that has started: two ranks' logs, no step yet."""
    folder = tmp_path / "1"
    (folder / "log").mkdir(parents=True)
    (tmp_path / "slurm").mkdir()
    for rank in (0, 1):
        (folder / "log" / f"9.0_{rank}_log.out").write_text(f"rank {rank}\n")
    (folder / "config.yaml").write_text(
        "cluster:\n  max_restarts: 2\n  requeue: false\n  name: slurm\nother:\n  x: 1\n"
    )
    return folder


def printed(trial: Path, *lines: str) -> None:
    """What the batch script has printed: an earlier start's complaint, and these."""
    earlier = ["== start 8.9 == trial 1", "srun: error: node7: task 0: Killed", "== start 9.0 == trial 1 on node[1-2]"]
    (trial.parent / "slurm" / "8_1.out").write_text("\n".join([*earlier, *lines]) + "\n")


def noted(trial: Path, rank: int, **note: Any) -> None:
    note = {"time": 1.0, "type": "", "message": "", "traceback": "", "node": f"node{rank + 1}", **note}
    (trial / "log" / f"9.0_{rank}_error.json").write_text(json.dumps(note))


def stepped(trial: Path) -> None:
    lines = [{"time": 1, "phase": "starting"}, {"time": 2, "step": 1, "train/loss": 0.6}]
    (trial / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def how(trial: Path, code: int = 1, record: JobRecord = RUNNING) -> Ending:
    return how_it_ended.ending_of(trial, JOB, code, record)


def test_stopped_by_a_warning(trial: Path) -> None:
    (trial / "log" / "9.0_stopped.json").write_text(json.dumps({"time": 1, "reason": "signal SIGTERM", "step": 7}))
    assert how(trial, 0) == Ending("asked", "signal SIGTERM", 0)
    assert how(trial, 0, replace(RUNNING, preempted=True)).kind == "preempted"
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 60))
    assert how(trial, 0, replace(RUNNING, fields={"EndTime": soon})).kind == "timeout"
    (trial / "log" / "9.0_stopped.json").write_text(json.dumps({"time": 1, "reason": "the time limit", "step": 7}))
    assert how(trial, 0).kind == "timeout"


def test_what_did_not_save_in_time_is_no_failure(trial: Path) -> None:
    printed(trial, SRUN)
    assert how(trial, 137, replace(RUNNING, preempted=True)).kind == "preempted"
    assert how(trial, 137, replace(RUNNING, state="COMPLETING", reason="TimeLimit")).kind == "timeout"
    assert how(trial, 124).kind == "timeout", "the script's own timeout"


def test_the_node_of_the_first_error_before_the_first_step_is_suspect(trial: Path) -> None:
    printed(trial, SRUN)
    noted(trial, 0, time=2.0, type="RuntimeError", message="Connection reset by peer")
    noted(trial, 1, time=1.0, type="RuntimeError", message="CUDA error: uncorrectable ECC error")
    assert how(trial) == Ending("failure", "RuntimeError: CUDA error: uncorrectable ECC error", 0, suspect="node2")
    stepped(trial)
    assert how(trial).suspect == "", "its nodes can"


def test_a_rank_that_said_nothing(trial: Path) -> None:
    printed(trial, "srun: error: node2: task 1: Segmentation fault", "srun: error: node1: task 0: Terminated")
    assert how(trial, 139) == Ending("failure", "Segmentation fault", 0, suspect="node2")


@pytest.mark.parametrize("error", ["ValueError", "TypeError", "ConfigKeyError", ""])
def test_what_would_be_repeated(trial: Path, error: str) -> None:
    noted(trial, 0, type=error, message="model.x: cannot be 3")
    printed(trial, SRUN)
    assert how(trial).kind == "refused"


@pytest.mark.parametrize(
    ("in_the_log", "in_the_batch", "error", "kind"),
    [
        (
            "FATAL:   could not open image /images/nemo.sif: failed to retrieve path for /images/nemo.sif: lstat "
            "/images/nemo.sif: no such file or directory",
            "",
            "FATAL: could not open image /images/nemo.sif",
            "failure",
        ),
        (
            "slurmstepd: error: pyxis: container start failed with error code: 1\n"
            "slurmstepd: error: pyxis: printing enroot log file:\n"
            "slurmstepd: error: pyxis:     [ERROR] No such file or directory: /images/nemo.sqsh",
            "",
            "[ERROR] No such file or directory: /images/nemo.sqsh",
            "failure",
        ),
        ("", "slurmstepd: error: pyxis:     [ERROR] Could not process JSON input", "[ERROR] Could not proc", "failure"),
        ("/s/code/0/in_container.sh: line 12: exec: python9: not found", "", "exec: python9: not found", "refused"),
    ],
    ids=["apptainer", "pyxis", "pyxis, in the batch script's output", "python"],
)
def test_what_a_container_runtime_says(trial: Path, in_the_log: str, in_the_batch: str, error: str, kind: str) -> None:
    """An image that is missing may be there on another node; what it lacks it lacks on every node."""
    (trial / "log" / "9.0_1_log.out").write_text(f"{in_the_log}\n")
    printed(trial, in_the_batch, SRUN)
    ending = how(trial)
    assert error in ending.why and ending.why.startswith("the container: ")
    assert (ending.kind, ending.suspect) == (kind, "node2" if kind == "failure" else "")


def test_an_exception_of_a_rank_is_no_word_of_a_container(trial: Path) -> None:
    log = trial / "log" / "9.0_1_log.out"
    log.write_text("FATAL: kernel `fmha` is for sm80, but was built for sm70\nValueError: model.x: cannot be 3\n")
    printed(trial, SRUN)
    assert (how(trial).kind, how(trial).why) == ("refused", "ValueError: model.x: cannot be 3")


def test_a_warning_that_came_before_a_rank_could_listen(trial: Path) -> None:
    printed(trial, "srun: error: node1: tasks 0-1: Terminated")
    assert how(trial, 143).kind == "asked"
    printed(trial, "srun: error: node1: task 0: Terminated", "srun: error: node2: task 1: Killed")
    assert how(trial, 143).kind == "asked"
    printed(trial, "srun: error: node1: task 0: Terminated", "srun: error: node2: task 1: Segmentation fault")
    assert how(trial, 139).kind == "failure"


def test_memory_a_hang_and_an_unfit_node(trial: Path) -> None:
    printed(trial, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=9.0", SRUN)
    assert how(trial, 137).why.startswith("Detected 1 oom-kill event") and how(trial, 137).kind == "failure"
    printed(trial, "srun: error: node1: task 0: Exited with exit code 75")
    noted(trial, 0, type="Hung", message="no step for 300 s")
    stepped(trial)
    assert how(trial, 143) == Ending("failure", "Hung: no step for 300 s", 0)
    noted(trial, 0, type="NodeUnfit", message="3 GPUs of 4 are there")
    assert how(trial) == Ending("node", "3 GPUs of 4 are there", 0, suspect="node1", unfit=True)


def test_no_error_and_no_result(trial: Path) -> None:
    assert how(trial, 0).kind == "failure"


# -- what the script may do --------------------------------------------------------------------------------------------


def test_only_a_job_that_is_not_being_ended_is_ours() -> None:
    assert RUNNING.script_decides
    assert not replace(RUNNING, state="COMPLETING").script_decides, "cancelled, or Slurm requeues it"
    assert replace(RUNNING, state="COMPLETING", reason="TimeLimit").script_decides
    assert not replace(RUNNING, state="PENDING").script_decides


SHOWN = """JobId=9 ArrayJobId=8 ArrayTaskId=1 ArrayTaskThrottle=2 JobName=a JobState=FAILED b
   UserId=me(1000) GroupId=us(1000) MCS_label=N/A
   Priority=4294901757 Nice=0 Account=research QOS=normal
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:01:02 TimeLimit=1-00:00:00 TimeMin=N/A
   StartTime=2026-11-22T19:22:17 EndTime=2026-11-23T19:22:17 Deadline=N/A
   PreemptEligibleTime=2026-11-22T19:22:17 PreemptTime=None
   Partition=main AllocNode:Sid=login:77
   ReqNodeList=(null) ExcNodeList=node[3-4]
   TRES=cpu=4,mem=8G,node=2,billing=4,gres/gpu=4
   Command=/home/my files/sweep/slurm/0.sbatch Restarts=9
   WorkDir=/home/my files
   Comment=it is JobState=COMPLETED Partition=evil
   StdErr=/home/my files/runs/dpo/slurm/8_1.out
   StdIn=/dev/null
   StdOut=/home/my files/runs/dpo/slurm/8_1.out
   Power=

"""


def test_values_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "run", lambda *command, **_: client.Answer(command, 0, SHOWN, "", 0.0))
    record = slurm_job.query("8_1")
    assert (record.state, record.reason, record.restarts, record.preempted) == ("RUNNING", "None", 2, False)
    assert (record.excluded, record.required) == ("node[3-4]", "")
    fields = record.fields
    assert fields["WorkDir"] == "/home/my files" and fields["StdOut"] == "/home/my files/runs/dpo/slurm/8_1.out"
    assert (fields["Partition"], fields["TimeLimit"], fields["QOS"]) == ("main", "1-00:00:00", "normal")
    assert fields["EndTime"] == "2026-11-23T19:22:17" and fields["TRES"].startswith("cpu=4,mem=8G")
    assert fields["JobName"] == "a JobState=FAILED b" and fields["Comment"].endswith("Partition=evil")


def test_a_folder_with_a_line_break() -> None:
    fields = slurm_job.job_fields("JobId=9 JobName=x\n   WorkDir=/a\nb  c\n   StdIn=/dev/null\n")
    assert fields == {"JobId": "9", "JobName": "x", "WorkDir": "/a\nb  c", "StdIn": "/dev/null"}


def test_a_continuation_starts_in_the_jobs_folder_with_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submissions: list[dict[str, Any]] = []

    def sbatch(script: Path, options: list[str], **more: Any) -> client.Submitted:
        submissions.append({"options": options, **more})
        return client.Submitted(12, "", "")

    monkeypatch.setattr(client, "sbatch", sbatch)
    monkeypatch.setattr(client, "run", lambda *command, **_: client.Answer(command, 0, SHOWN, "", 0.0))
    for name in ("TRIAL_ENDS_AT", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SBATCH_SIGNAL", "KEPT"):
        monkeypatch.setenv(name, "1")
    script = tmp_path / "slurm_script"
    script.write_text("#!/bin/bash\n#SBATCH --signal=USR2@120\n")
    later = slurm_job.continuation(tmp_path, [1], JOB, slurm_job.query("8_1"), [str(script), "model=tiny"], ["node1"])
    (made,) = submissions
    assert later == "12_1" and made["cwd"] == Path("/home/my files") and made["script_args"] == ["model=tiny"]
    assert {"--export=ALL", "--exclude=node[3-4],node1", "--dependency=afterany:8_1"} <= set(made["options"])
    env = made["env"]
    assert (env["LAUNCHER_CHAIN"], env["KEPT"]) == ("8_1", "1")
    assert not {"TRIAL_ENDS_AT", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SBATCH_SIGNAL"} & set(env)
    receipt = tmp_path / "slurm" / "trial1-after-8_1.id"
    assert client.read_receipt(receipt) == (12, "lab"), "the cluster of this job, since sbatch names none"


def test_the_line_with_the_clusters_name_is_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "CLUSTER: nautilus\nnode1 idle\nnode2 drain\n"
    monkeypatch.setattr(client, "run", lambda *command, **_: client.Answer(command, 0, rows, "", 0.0))
    assert slurm_job.room_without("main", [], 1) and not slurm_job.room_without("main", [], 2)


class Slurm:
    """Records what would be done to the job."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, record: JobRecord = RUNNING) -> None:
        self.done: list[str] = []
        monkeypatch.setattr(slurm_job, "query", lambda element: record)
        monkeypatch.setattr(slurm_job, "hostnames", lambda nodes: ["node1", "node2"] if nodes else [])
        monkeypatch.setattr(slurm_job, "room_without", lambda partition, nodes, needed: True)
        monkeypatch.setattr(slurm_job, "requeue", lambda element: self.done.append(f"requeue {element}") or True)
        monkeypatch.setattr(slurm_job, "continuation", lambda *_: self.done.append("continuation") or "12_1")


def ends(trial: Path, code: int = 1) -> int:
    starts.began(trial, NOW)
    return begin_end.end(trial, JOB, code, ["script"])


def test_a_start_that_was_replaced_does_nothing(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Slurm(monkeypatch)
    starts.take_over(trial, "11.0")
    assert ends(trial) == 1 and world.done == []
    assert starts.read(trial)[0].kind == "replaced"


def test_a_start_of_which_another_runs_already_does_nothing(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Slurm(monkeypatch, replace(RUNNING, restarts=1))
    starts.take_over(trial, "9.0")
    assert ends(trial, 137) == 137 and world.done == []


def test_done_is_done_whatever_the_ranks_said_after(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Slurm(monkeypatch)
    (trial / "result.json").write_text("{}")
    assert ends(trial, 137) == 0 and world.done == []


def test_a_failure_in_the_evaluation_ends_a_trial_well(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed or hanging rank cannot record the result itself."""
    world = Slurm(monkeypatch)
    starts.take_over(trial, "9.0")
    result_file.write_trained(trial, {"steps": 8})
    printed(trial, "srun: error: node2: task 1: Killed")
    assert ends(trial, 137) == 0 and world.done == []
    result = json.loads((trial / "result.json").read_text())
    assert result["steps"] == 8 and result["evaluation"]["failed"] and "Killed" in result["evaluation"]["skipped"]
    assert starts.read(trial)[0].kind == "done" and not (trial / "trained.json").exists()


def test_a_trial_that_is_preempted_in_its_evaluation_evaluates_again(
    trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Slurm(monkeypatch, replace(RUNNING, preempted=True))
    starts.take_over(trial, "9.0")
    result_file.write_trained(trial, {"steps": 8})
    assert ends(trial, 0) == 0 and world.done == ["continuation"]
    assert not (trial / "result.json").exists()


def test_an_evaluation_that_is_interrupted_too_often_is_left_out(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Slurm(monkeypatch, replace(RUNNING, state="COMPLETING", reason="TimeLimit"))
    (trial / "config.yaml").write_text("cluster:\n  max_timeouts: 0\n")
    starts.take_over(trial, "9.0")
    result_file.write_trained(trial, {"steps": 8})
    assert ends(trial, 124) == 0 and world.done == []
    assert "time limit" in json.loads((trial / "result.json").read_text())["evaluation"]["skipped"]


def test_without_requeue_another_job_goes_on(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Slurm(monkeypatch)
    starts.take_over(trial, "9.0")
    assert ends(trial) == 0 and world.done == ["continuation"]
    assert starts.read(trial)[0].then == "goes on as job 12_1"


def test_giving_up_ends_with_the_ranks_exit_code(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = Slurm(monkeypatch)
    starts.take_over(trial, "9.0")
    noted(trial, 0, type="ValueError", message="no")
    assert ends(trial, 137) == 137 and world.done == []
    assert "gives up: ValueError: no" in capsys.readouterr().out


def test_of_trials_that_share_a_job_those_that_may_go_on_do(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has been ended without a script; the job goes on for the one that failed, not for the one that gave up."""
    world = Slurm(monkeypatch)
    done, lost = (trial.parent / name for name in ("2", "3"))
    for one in (done, lost):
        shutil.copytree(trial, one)
    (done / "result.json").write_text("{}")
    noted(lost, 0, type="ValueError", message="no")
    for one in (trial, done, lost):
        starts.take_over(one, "9.0")
        starts.began(one, NOW)
    assert [begin_end.end(one, JOB, 1) for one in (trial, done, lost)] == [0, 0, 1]
    assert world.done == [] and starts.read(trial)[0].then == "is to go on"
    assert begin_end.again([done, lost], JOB, ["script"]) == 1 and world.done == []
    assert begin_end.again([trial, done, lost], JOB, ["script"]) == 0 and world.done == ["continuation"]
    assert starts.read(trial)[0].then == "goes on as job 12_1" and starts.read(lost)[0].then.startswith("gave up")
    later = replace(JOB, start_name="9.1", restarts=1)
    assert [begin_end.begin(one, later, beside=True) for one in (done, lost)] == [begin_end.DONE, 1]
    starts.take_over(trial, "30.0")
    starts.began(trial, replace(NOW, name="30.0", chain="30_0"))  # of a retry
    assert begin_end.begin(trial, later, beside=True) == 1 and starts.owner(trial) == "30.0"


def test_trials_on_one_node_blame_it_at_the_same_moment(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            list(pool.map(lambda trial: bad_nodes.add(tmp_path, "lab", "node1", "unfit", trial), range(8)))
    assert [one.name for one in bad_nodes.read(tmp_path)] == ["node1"]


def test_dependents_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "5|afterok:4_*(unfulfilled)",
        "6|afterany:4_1(unfulfilled),afterok:44_*(unfulfilled)",
        "7|afterok:44_*(unfulfilled)",
        "8|(null)",
        "9_[1]|afterany:4_1(unfulfilled)",
    ]
    ran: list[tuple[str, ...]] = []

    def run(*command: str, **_: object) -> client.Answer:
        ran.append(command)
        return client.Answer(command, 0, "\n".join(rows), "", 0.0)

    monkeypatch.setattr(client, "run", run)
    slurm_job._bring_dependents("4", 9)
    assert [command[2:] for command in ran[1:]] == [
        ("JobId=5", "Dependency=afterok:4_*,afterok:9"),
        ("JobId=6", "Dependency=afterany:4_1,afterok:44_*,afterany:9"),
    ]


def test_the_element_is_never_named_by_its_own_number() -> None:
    env = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "3"}
    job = OwnJob.here(env)
    assert (job.element, job.start_name, job.restarts, job.chain) == ("8_2", "8.3", 3, "8_2")
    assert OwnJob.here({**env, "LAUNCHER_CHAIN": "5_2"}).chain == "5_2"
