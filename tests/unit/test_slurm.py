"""Slurm's commands: what they printed on a real 22.05.8 (slurm_22_05.jsonl, recorded by `slurm.log_to`), and running them."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import slurm, slurm_rows, slurm_site

RECORDED = {
    answer["label"]: answer
    for answer in map(json.loads, Path(__file__).with_name("slurm_22_05.jsonl").read_text().splitlines())
}


def said(label: str) -> str:
    text: str = RECORDED[label]["stdout"]
    return text


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_queue_with_an_array_that_runs_two_at_a_time() -> None:
    rows = slurm_rows.queue_rows(said("one array"))
    assert {(row.name, row.job_id, row.state.word, row.reason) for row in rows} == {
        ("12_0", 15, "RUNNING", ""),
        ("12_50", 16, "RUNNING", ""),
        ("12_100", 12, "PENDING", "JobArrayTaskLimit"),
        ("12_150", 12, "PENDING", "JobArrayTaskLimit"),
        ("12_200", 12, "PENDING", "JobArrayTaskLimit"),
    }
    runs = next(row for row in rows if row.task_id == 50)
    assert (runs.array_id, runs.nodes, runs.node_count, runs.partition) == (12, "node[1-2]", 2, "main")
    assert (runs.submitted, runs.started, runs.elapsed, runs.limit) == (1795365960, 1795365960, 4, 1800)
    waits = next(row for row in rows if row.task_id == 100)
    assert (waits.started, waits.nodes, waits.restarts) == (None, "", 0)


def test_a_queue_of_all_sorts() -> None:
    rows = {row.name: row for row in slurm_rows.queue_rows(said("queue"))}
    assert len(rows) == len(said("queue").strip().splitlines())
    assert rows["20"].reason == "Job's account not permitted to use this partition (wide allows vip not research)"
    assert {name: rows[name].reason for name in ("21", "23", "19", "22", "17")} == {
        "21": "PartitionTimeLimit",
        "23": "PartitionNodeLimit",
        "19": "Dependency",
        "22": "BeginTime",
        "17": "JobHeldUser",
    }
    assert (rows["22"].limit, rows["22"].task_id, rows["22"].array_id) == (math.inf, None, None)
    again = rows["10_5"]
    assert (again.state.phase, again.restarts, again.reason) == ("waiting", 1, "BeginTime")


def test_a_preempted_job_is_on_its_way_back() -> None:
    low, high = slurm_rows.queue_rows(said("preempted"))
    assert (low.state.word, low.state.phase, low.restarts) == ("COMPLETING", "running", 1)
    assert high.state.phase == "waiting"


def test_ended_jobs_of_the_queue() -> None:
    states = {row.name: (row.state.word, row.state.phase) for row in slurm_rows.queue_rows(said("ended"))}
    assert states == {
        "9": ("CANCELLED", "failed"),
        "3": ("TIMEOUT", "failed"),
        "2_0": ("COMPLETED", "done"),
        "2_1": ("FAILED", "failed"),
        "2_2": ("FAILED", "failed"),
        "2_3": ("COMPLETED", "done"),
        "2_4": ("COMPLETED", "done"),
    }


def test_accounts() -> None:
    rows = {row.name: row for row in slurm_rows.account_rows(said("accounts"))}
    codes = ("exit_code", "exit_signal", "derived_exit_code", "derived_signal")
    assert {name: tuple(getattr(rows[name], code) for code in codes) for name in ("2_0", "2_1", "2_2", "2_3", "4")} == {
        "2_0": (0, 0, 0, 0),
        "2_1": (3, 0, 0, 0),
        "2_2": (0, 11, 0, 0),
        "2_3": (0, 0, 7, 0),  # a step failed, and the script went on
        "4": (9, 0, 0, 9),  # out of memory, as 22.05 says it
    }
    assert rows["9"].state.word == "CANCELLED"
    assert (rows["26"].state.word, rows["26"].state.ended) == ("NODE_FAIL", True)
    assert (rows["3"].started, rows["3"].ended, rows["3"].elapsed, rows["3"].limit) == (1795365948, 1795366036, 88, 60)
    assert (rows["22"].limit, rows["20"].limit, rows["22"].started, rows["22"].nodes) == (math.inf, None, None, "")
    assert rows["2_0"].allocated == {"billing": 1, "cpu": 1, "mem": 4000, "node": 1}
    assert (rows["27"].account, rows["27"].qos, rows["27"].partition, rows["27"].ended) == (
        "research",
        "normal",
        "main",
        None,
    )


def test_waiting_elements_of_an_array_share_a_line_and_become_rows() -> None:
    rows = [row for row in slurm_rows.account_rows(said("accounts")) if row.array_id in (13, 18)]
    few = [row for row in rows if row.array_id == 18]
    assert [(row.name, row.job_id, row.state.word) for row in few] == [(f"18_{n}", 18, "CANCELLED") for n in range(3)]
    many = [row.task_id for row in rows if row.array_id == 13]
    assert len(many) == 38 and many[:6] == [0, 2, 5, 7, 8, 9] and many[-1] == 98  # longer than Slurm writes by itself


def test_every_run_of_a_requeued_job_is_a_row() -> None:
    runs = [(row.name, row.state.word) for row in slurm_rows.account_rows(said("every run"))]
    assert [state for name, state in runs if name == "24"] == ["PREEMPTED", "CANCELLED"]
    assert [state for name, state in runs if name == "27"] == ["NODE_FAIL", "RUNNING"]
    assert [state for name, state in runs if name == "10_5"] == ["REQUEUED", "CANCELLED"]


def test_reasons_may_hold_the_separator_and_sinfos_header_is_skipped() -> None:
    line = said("one array").splitlines()[0].replace("JobArrayTaskLimit", "a|b c")
    assert [row.reason for row in slurm_rows.queue_rows(f"CLUSTER: lab\n{line}\n\n")] == ["a|b c"]
    with pytest.raises(ValueError, match="13 fields expected: 'slurm says hello'"):
        slurm_rows.queue_rows("slurm says hello\n")


@pytest.mark.parametrize(
    ("text", "word", "phase"),
    [
        ("RUNNING", "RUNNING", "running"),
        ("CANCELLED by 1000", "CANCELLED", "failed"),
        ("OUT_OF_ME+", "OUT_OF_ME", "running"),
        ("COMPLETED+", "COMPLETED", "done"),
        ("BRAND_NEW", "BRAND_NEW", "running"),
        ("", "(none)", "running"),
    ],
)
def test_state_words(text: str, word: str, phase: str) -> None:
    assert (slurm_rows.state(text).word, slurm_rows.state(text).phase) == (word, phase)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0), ("3:04", 184), ("90", 5400), ("1:00:00", 3600), ("2-12:00:00", 216000), ("2-12", 216000),
        ("1-02:30", 95400), ("00:00.500", 0), ("UNLIMITED", math.inf), ("infinite", math.inf), ("INVALID", None),
        ("Partition_Limit", None), ("NONE", None), ("", None),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    assert slurm_rows.duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1h", "-5", "1:2:3:4", "1-", "1 000"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration as Slurm writes them"):
        slurm_rows.duration(text)


@given(st.sets(st.integers(0, 5000), min_size=1), st.none() | st.integers(1, 99))
def test_array_spec_and_back(indices: set[int], at_once: int | None) -> None:
    assert slurm_rows.tasks(slurm_rows.array_spec(indices, at_once)) == sorted(indices)


def test_array_specs() -> None:
    assert slurm_rows.array_spec([7, 0, 1, 2], at_once=2) == "0-2,7%2"
    assert slurm_rows.tasks("0-90:30%1") == [0, 30, 60, 90]
    for bad in ("", "a", "1-2-3", "1,", "0,2,5..."):
        with pytest.raises(ValueError, match="is no array specification"):
            slurm_rows.tasks(bad)
    with pytest.raises(ValueError, match="no elements"):
        slurm_rows.array_spec([])


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}), ("gpu:8", {"": 8}), ("gpu:a100:4(S:0-1)", {"a100": 4}), ("gpu:8(S:0,2),shard:16", {"": 8}),
        ("gpu:a100:4(S:0),gpu:v100:2(S:1),craynetwork:4", {"a100": 4, "v100": 2}), ("shard:gpu:2", {}),
    ],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, gpus: dict[str, int]) -> None:
    assert slurm_rows.gpus(gres) == gpus


def test_resources() -> None:
    assert slurm_rows.resources("cpu=32,mem=125G,gres/gpu=4") == {"cpu": 32, "mem": 128000, "gres/gpu": 4}
    assert slurm_rows.resources("mem=62.50G,node=1") == {"mem": 64000, "node": 1}
    assert slurm_rows.resources("") == {}


# -- the cluster -------------------------------------------------------------------------------------------------------


def test_partitions_with_a_drained_node() -> None:
    groups = slurm_site.node_groups(said("cluster with a node drained 2"))
    found = {
        partition.name: partition for partition in slurm_site.partitions(said("cluster with a node drained"), groups)
    }
    assert {name: (p.state, p.default, p.max_time, p.default_time) for name, p in found.items()} == {
        "main": ("UP", True, 604800, 1800),
        "short": ("UP", False, 300, None),
        "dead": ("DOWN", False, math.inf, None),
        "wide": ("UP", False, math.inf, None),
    }
    main, wide = found["main"], found["wide"]
    assert (main.total_nodes, main.max_nodes, main.gpus_per_node, main.memory_per_node) == (2, math.inf, 2, 64000)
    assert (main.nodes_with(gpus=2), main.nodes_with(gpus=2, usable=True), main.nodes_with(gpus=3)) == (2, 1, 0)
    assert (main.nodes_with(memory=64000, cpus=16), main.nodes_with(memory=64001)) == (2, 0)
    assert main.admits_account("anyone") and main.admits_qos("anything")
    assert wide.admits_account("vip") and not wide.admits_account("research")


def test_partitions_that_deny_and_that_have_unlike_nodes() -> None:
    line = said("cluster").splitlines()[-2].replace("AllowAccounts=vip", "DenyAccounts=guest,trial")
    line = line.replace("AllowQos=ALL", "AllowQos=high").replace("MaxNodes=UNLIMITED", "MaxNodes=4")
    groups = slurm_site.node_groups("wide|idle~|3|64|515000+|gpu:h100:8(S:0-1)\nwide|down*|1|64|256000|(null)\n")
    (wide,) = slurm_site.partitions(line, groups)
    assert not wide.admits_account("guest") and wide.admits_account("research")
    assert not wide.admits_qos("normal") and wide.admits_qos("high")
    assert (wide.max_nodes, wide.gpus_per_node, wide.memory_per_node) == (4, 8, 515000)
    assert [(group.state, group.usable, group.gpus) for group in wide.groups] == [
        ("idle", True, {"h100": 8}),
        ("down", False, {}),
    ]


def test_associations() -> None:
    research, root = slurm_site.associations(said("associations"))
    assert (research.account, research.default, research.qos) == ("research", True, {"normal", "high"})
    assert (root.account, root.default, root.max_submit, root.group) == ("root", False, math.inf, {})
    (limited,) = slurm_site.associations(
        "lab|ml|gpu|ml|normal|normal|100|1-00:00:00|gres/gpu=8,node=4|gres/gpu=64,mem=1T\n"
    )
    assert (limited.partition, limited.max_submit, limited.max_wall) == ("gpu", 100, 86400)
    assert (limited.max_per_job, limited.group) == ({"gres/gpu": 8, "node": 4}, {"gres/gpu": 64, "mem": 1024 * 1024})


# -- running commands --------------------------------------------------------------------------------------------------


class Fakes:
    """Commands on the PATH that answer as they are told and note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, stdout: str = "", stderr: str = "", code: int | None = 0, first: str = "") -> None:
        (self.folder / f"{name}.out").write_text(stdout)
        (self.folder / f"{name}.err").write_text(stderr)
        script = self.folder / name
        script.write_text(
            f"""#!/bin/sh
cd '{self.folder}'; printf '%s\\0' "$@" >{name}.args; env -0 >{name}.env; cat >{name}.in
{first}
cat {name}.out; cat {name}.err >&2; exit {code}
"""
        )
        script.chmod(0o755)

    def add_recorded(self, label: str) -> None:
        answer = RECORDED[label]
        self.add(answer["command"][0], answer["stdout"], answer["stderr"], answer["code"])

    def args(self, name: str) -> list[str]:
        return (self.folder / f"{name}.args").read_text().split("\0")[:-1]

    def env(self, name: str) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in (self.folder / f"{name}.env").read_text().split("\0")[:-1])
        return {key: value for key, _, value in pairs}

    def stdin(self, name: str) -> str:
        return (self.folder / f"{name}.in").read_text()


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "SQUEUE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    slurm.count.clear()
    return Fakes(folder)


def test_one_squeue_answers_for_a_whole_sweep(fakes: Fakes) -> None:
    fakes.add_recorded("one array")
    with slurm.recorded() as answers:
        assert len(slurm.squeue([12, "13_4"])) == 5
    assert slurm.count == {"squeue": 1}
    assert fakes.args("squeue")[:4] == ["-r", "-h", "-j", "12,13_4"]
    assert [answer.stdout for answer in answers] == [said("one array")]


def test_no_jobs_is_no_question_and_no_harm(fakes: Fakes) -> None:
    assert (slurm.squeue([]), slurm.sacct([])) == ([], [])
    slurm.scancel([])
    slurm.requeue([])
    slurm.start_now([])
    assert not slurm.count


def test_choosing_by_name_or_user(fakes: Fakes) -> None:
    fakes.add("squeue")
    fakes.add("sacct")
    slurm.squeue(name="dpo beta", ended=True)
    assert fakes.args("squeue")[2:5] == ["--name=dpo beta", "--me", "--states=all"]
    slurm.squeue(user="ann")
    assert fakes.args("squeue")[2:4] == ["--user=ann", "-O"]
    slurm.sacct(name="dpo", since=0, every_run=True)
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(0))
    assert fakes.args("sacct")[3:7] == ["--name=dpo", "--starttime", start, "--duplicates"]
    with pytest.raises(ValueError, match="comma"):
        slurm.squeue(name="a,b")


def test_a_forgotten_job_is_no_failure(fakes: Fakes) -> None:
    fakes.add_recorded("one forgotten")
    assert slurm.squeue([999]) == []
    fakes.add_recorded("scancel forgotten signal")
    slurm.scancel(["999_1"], "USR1", batch=True)
    assert fakes.args("scancel") == ["--signal=USR1", "--full", "999_1"]
    fakes.add_recorded("requeue forgotten")
    with pytest.raises(slurm.SlurmError, match="^scontrol requeue 999: Invalid job id specified for job 999$"):
        slurm.requeue([999])


def test_the_answers_do_not_depend_on_the_users_profile(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "LC_ALL"):
        monkeypatch.setenv(name, "odd")
    monkeypatch.setenv("SLURM_CONF", "/cluster/slurm.conf")
    fakes.add("squeue")
    slurm.squeue([1])
    env = fakes.env("squeue")
    assert not [name for name in env if name.startswith("SQUEUE_")]
    assert (env["SLURM_TIME_FORMAT"], env["SLURM_BITSTR_LEN"], env["LC_ALL"]) == ("%s", "0", "C")
    assert env["SLURM_CONF"] == "/cluster/slurm.conf"


def test_submitting(fakes: Fakes, tmp_path: Path) -> None:
    fakes.add("sbatch", "lua: welcome\n4711;far\n", "sbatch: your quota is fine\n")
    script = tmp_path / "a b.sh"
    made = slurm.sbatch(script, ["--array=0-2", "--comment=$(touch x) 'y'\nz"], script_args=["one"])
    assert made == slurm.Submitted(4711, "far", "sbatch: your quota is fine")
    assert fakes.args("sbatch") == ["--parsable", "--array=0-2", "--comment=$(touch x) 'y'\nz", str(script), "one"]
    slurm.sbatch(text="#!/bin/sh\ntrue\n")
    assert (fakes.args("sbatch"), fakes.stdin("sbatch")) == (["--parsable"], "#!/bin/sh\ntrue\n")
    fakes.add("sbatch", "Submitted, thank you\n")
    with pytest.raises(slurm.SlurmError, match="no job id in 'Submitted, thank you"):
        slurm.sbatch(script)
    with pytest.raises(ValueError, match="either a script or its text"):
        slurm.sbatch()


def test_a_job_submitted_from_a_job_does_not_inherit_its_limits(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("sbatch", "1\n")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "4000")
    slurm.sbatch("x")
    assert fakes.env("sbatch")["SLURM_MEM_PER_CPU"] == "4000"  # no job of ours: the user's own wish
    for name, value in {"SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n", "SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}.items():
        monkeypatch.setenv(name, value)
    slurm.sbatch("x")
    left = {name: value for name, value in fakes.env("sbatch").items() if name.startswith(("SLURM", "SBATCH"))}
    assert left == {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (
            "bad partition",
            "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified",
        ),
        ("bad account", "Batch job submission failed: Invalid account or account/partition combination specified"),
        ("array too large", "Batch job submission failed: Invalid job array specification"),
    ],
)
def test_a_refusal_is_one_line_and_carries_everything(fakes: Fakes, label: str, why: str) -> None:
    fakes.add_recorded(label)
    with pytest.raises(slurm.SlurmError) as caught:
        slurm.sbatch("x.sh", RECORDED[label]["command"][2:])
    assert str(caught.value) == f"{' '.join(RECORDED[label]['command'])} x.sh: {why}"
    assert (caught.value.code, caught.value.stderr) == (1, RECORDED[label]["stderr"])
    assert caught.value.command[-1] == "x.sh"


def test_a_command_that_takes_too_long_is_ended_with_its_children(fakes: Fakes) -> None:
    fakes.add("squeue", first="sleep 30; echo late")
    began = time.monotonic()
    with slurm.recorded() as answers, pytest.raises(slurm.SlurmTimeout, match="squeue x: no answer in 0 s"):
        slurm.run("squeue", "x", timeout=0.3)
    assert time.monotonic() - began < 5
    assert [answer.code for answer in answers] == [None]


def test_no_slurm_on_this_machine(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fakes.folder))
    assert not slurm.available()
    with pytest.raises(slurm.SlurmMissing, match="^squeue -r .*: not found on the PATH"):
        slurm.squeue([1])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        slurm.run("/bin/true", cwd=tmp_path / "nowhere")


def test_an_answer_that_cannot_be_read_is_shown(fakes: Fakes) -> None:
    fakes.add("squeue", "maintenance until noon\n")
    with pytest.raises(
        slurm.SlurmError, match="cannot read its answer: .*13 fields expected: 'maintenance until noon'"
    ):
        slurm.squeue([1])
    fakes.add("scontrol", "nothing of use\n")
    fakes.add("sinfo")
    with pytest.raises(slurm.SlurmError, match=r"cannot read its answer: KeyError\('ClusterName'\)"):
        slurm.cluster()


def test_bytes_that_are_no_text_do_no_harm(fakes: Fakes) -> None:
    line = said("one array").splitlines()[0].replace("JobArrayTaskLimit", "r\udce9servation")
    fakes.add("squeue")
    (fakes.folder / "squeue.out").write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    assert slurm.squeue([1])[0].reason == "r\ufffdservation"


def test_log_to_keeps_raw_answers_for_a_bug_report(fakes: Fakes, tmp_path: Path) -> None:
    log = tmp_path / "slurm.jsonl"
    fakes.add_recorded("one array")
    hook = slurm.log_to(log)
    slurm.hooks.append(hook)
    try:
        slurm.squeue([12])
        slurm.squeue([12])
    finally:
        slurm.hooks.remove(hook)
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert first["stdout"] == second["stdout"] == said("one array") and first["command"][0] == "squeue"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_cluster_in_two_commands(fakes: Fakes) -> None:
    fakes.add_recorded("cluster")
    fakes.add_recorded("cluster 2")
    found = slurm.cluster()
    assert slurm.count == {"scontrol": 1, "sinfo": 1}
    assert (found.name, found.max_array_size, found.settings["SlurmctldHost[0]"]) == ("lab", 1001, "head1(127.0.0.1)")
    assert [partition.name for partition in found.partitions] == ["main", "short", "dead", "wide"]
    assert found.default_partition is found.partition("main") and found.partition("nope") is None


def test_scontrol_without_readline_writes_its_prompt_in_front_of_the_answer(fakes: Fakes) -> None:
    text = (
        said("cluster")
        .replace("scontrol: show config\n", "scontrol: ")
        .replace("scontrol: show partition\n", "scontrol: ")
    )
    assert "scontrol: PartitionName=main" in text
    fakes.add("scontrol", text)
    fakes.add_recorded("cluster 2")
    assert [partition.name for partition in slurm.cluster().partitions] == ["main", "short", "dead", "wide"]


def test_version_and_controllers(fakes: Fakes) -> None:
    fakes.add_recorded("version")
    assert slurm.available() and slurm.version() == (22, 5, 8)
    fakes.add("sbatch", "slurm 24.11.0-0rc1\n")
    assert slurm.version() == (24, 11, 0)
    fakes.add_recorded("ping")
    assert slurm.ping() == {"head1": True}
    fakes.add("scontrol", "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is DOWN\n", code=1)
    assert slurm.ping() == {"a": False, "b": False}
    fakes.add("scontrol", stderr="scontrol: fatal: Could not establish a configuration source\n", code=1)
    with pytest.raises(slurm.SlurmError, match="^scontrol ping: Could not establish a configuration source$"):
        slurm.ping()


def test_accounts_of_this_user(fakes: Fakes) -> None:
    fakes.add_recorded("associations")
    assert [row.account for row in slurm.associations("ann") or []] == ["research", "root"]
    assert fakes.args("sacctmgr")[2:6] == ["show", "user", "ann", "withassoc"]
    fakes.add("sacctmgr", stderr="You are not running a supported accounting_storage plugin\n", code=1)
    assert slurm.associations() is None
    fakes.add("sacctmgr", stderr="sacctmgr: error: Unable to contact slurmdbd\n", code=1)
    with pytest.raises(slurm.SlurmError, match="Unable to contact slurmdbd"):
        slurm.associations()


def test_ctrl_c_does_not_end_an_sbatch_that_is_half_way(fakes: Fakes) -> None:
    """The terminal's Ctrl-C goes to the whole process group; the submission must not be torn in two by it."""
    fakes.add("sbatch", "7\n", first="touch started; sleep 0.5; touch submitted")
    program = "from launcher import slurm; slurm.sbatch('x')"
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (fakes.folder / "started").exists():
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(10)
    time.sleep(0.8)
    assert (fakes.folder / "submitted").exists()


def test_importing_it_is_light() -> None:
    program = "import sys, launcher.slurm; print(sorted({'torch', 'hydra', 'omegaconf', 'submitit', 'nemo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
