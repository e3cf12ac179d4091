"""Running Slurm's commands: how they are called, and what becomes of what they say, with commands that only answer."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.slurm import client, run
from tests.unit.slurm.test_slurm import RECORDED, said


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
    client.count.clear()
    return Fakes(folder)


def test_one_squeue_answers_for_a_whole_sweep(fakes: Fakes) -> None:
    fakes.add_recorded("one array")
    with run.recorded() as answers:
        assert len(client.squeue([12, "13_4"])) == 5
    assert client.count == {"squeue": 1}
    assert fakes.args("squeue")[:4] == ["-r", "-h", "-j", "12,13_4"]
    assert [answer.stdout for answer in answers] == [said("one array")]


def test_no_jobs_is_no_question_and_no_harm(fakes: Fakes) -> None:
    assert (client.squeue([]), client.sacct([])) == ([], [])
    client.scancel([])
    client.requeue([])
    client.start_now([])
    assert not client.count


def test_choosing_by_name_or_user(fakes: Fakes) -> None:
    fakes.add("squeue")
    fakes.add("sacct")
    client.squeue(name="dpo beta", ended=True)
    assert fakes.args("squeue")[2:5] == ["--name=dpo beta", "--me", "--states=all"]
    client.squeue(user="ann")
    assert fakes.args("squeue")[2:4] == ["--user=ann", "-O"]
    client.sacct([7], every_run=True)
    assert fakes.args("sacct")[3:6] == ["-j", "7", "--duplicates"]
    for name in ("a,b", "it's", "a[1-2]", "a]"):
        with pytest.raises(ValueError, match="cannot look for a name with"):
            client.squeue(name=name)


def test_an_array_that_the_accounting_does_not_know_as_one_yet(fakes: Fakes) -> None:
    """Seen on 22.05 in the first seconds: the last element as a plain job by the array's number."""
    fakes.add_recorded("every run")
    (fakes.folder / "sacct.out").write_text(said("every run").replace("10_5|11|", "10|10|"))
    assert {row.name for row in client.sacct([10])} >= {"10", "10_7"}
    assert {row.name for row in client.sacct([10]) if row.task_id is not None} == {"10_7"}


def test_a_forgotten_job_is_no_failure(fakes: Fakes) -> None:
    fakes.add_recorded("one forgotten")
    assert client.squeue([999]) == []
    fakes.add_recorded("scancel forgotten signal")
    client.scancel(["999_1"])
    assert fakes.args("scancel") == ["999_1"]
    fakes.add_recorded("requeue forgotten")
    with pytest.raises(client.SlurmError, match="^scontrol requeue 999: Invalid job id specified for job 999$"):
        client.requeue([999])


def test_the_answers_do_not_depend_on_the_users_profile(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "LC_ALL"):
        monkeypatch.setenv(name, "odd")
    monkeypatch.setenv("SLURM_CONF", "/cluster/slurm.conf")
    fakes.add("squeue")
    client.squeue([1])
    env = fakes.env("squeue")
    assert not [name for name in env if name.startswith("SQUEUE_")]
    assert (env["SLURM_TIME_FORMAT"], env["SLURM_BITSTR_LEN"], env["LC_ALL"]) == ("%s", "0", "C")
    assert env["SLURM_CONF"] == "/cluster/slurm.conf"


def test_submitting(fakes: Fakes, tmp_path: Path) -> None:
    fakes.add("sbatch", "lua: welcome\n4711;far\n", "sbatch: your quota is fine\n")
    script = tmp_path / "a b.sh"
    made = client.sbatch(script, ["--array=0-2", "--comment=$(touch x) 'y'\nz"], script_args=["one"])
    assert made == client.Submitted(4711, "far", "sbatch: your quota is fine")
    assert fakes.args("sbatch") == ["--parsable", "--array=0-2", "--comment=$(touch x) 'y'\nz", str(script), "one"]
    client.sbatch(text="#!/bin/sh\ntrue\n")
    assert (fakes.args("sbatch"), fakes.stdin("sbatch")) == (["--parsable"], "#!/bin/sh\ntrue\n")
    fakes.add("sbatch", "Submitted, thank you\n")
    with pytest.raises(client.SlurmError, match="no job id in 'Submitted, thank you"):
        client.sbatch(script)
    with pytest.raises(ValueError, match="either a script or its text"):
        client.sbatch()


def test_a_job_submitted_from_a_job_does_not_inherit_its_limits(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("sbatch", "1\n")
    of_a_job = ("SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "PMI_RANK", "PMIX_RANK")
    for name in of_a_job:
        monkeypatch.setenv(name, "4000")
    client.sbatch("x")
    assert not set(of_a_job) & set(fakes.env("sbatch")), "a shell may have them without SLURM_JOB_ID"
    for name, value in {"SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n", "SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}.items():
        monkeypatch.setenv(name, value)
    client.sbatch("x")
    left = {name: value for name, value in fakes.env("sbatch").items() if name.startswith(("SLURM", "SBATCH"))}
    assert left == {"SLURM_CONF": "c", "SBATCH_ACCOUNT": "a"}


def submitted(tmp_path: Path, *lines: str) -> int:
    script = tmp_path / "0.sbatch"
    script.write_text("\n".join(["#!/bin/bash", *lines, "true"]) + "\n")
    return client.submit(script, tmp_path / "0.id")


def test_the_scripts_lines_win_over_a_profile(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("sbatch", "4711\n")
    profile = {
        "SBATCH_TIMELIMIT": "2", "SBATCH_NO_REQUEUE": "1", "SBATCH_SIGNAL": "USR1@60", "SBATCH_JOB_NAME": "mine",
        "SBATCH_OUTPUT": "/x", "SBATCH_ERROR": "/y", "SBATCH_ARRAY_INX": "0", "SBATCH_EXPORT": "NONE",
        "SBATCH_WAIT": "1", "SBATCH_MEM_PER_CPU": "1G", "SBATCH_PARTITION": "short", "SBATCH_ACCOUNT": "vip",
    }  # fmt: skip
    for name, value in profile.items():
        monkeypatch.setenv(name, value)
    lines = [f"#SBATCH --{option}" for option in (
        "time=60", "requeue", "signal=USR2@120", "job-name=x", "output=x", "array=0-2", "mem=4G", "partition=gpu",
    )]  # fmt: skip
    assert submitted(tmp_path, *lines) == 4711
    left = {name: value for name, value in fakes.env("sbatch").items() if name.startswith("SBATCH")}
    assert left == {"SBATCH_ACCOUNT": "vip"}, "what the script does not say is taken from the profile"
    submitted(tmp_path, *lines[:-1])
    assert fakes.env("sbatch")["SBATCH_PARTITION"] == "short"


def test_a_banner_in_another_encoding(fakes: Fakes, tmp_path: Path) -> None:
    fakes.add("sbatch", "4711\n", first="printf 'Willkommen, \\334bermut\\n'")
    assert submitted(tmp_path) == 4711
    assert client.read_receipt(tmp_path / "0.id") == (4711, "")


def test_a_controller_that_did_not_answer_may_have_taken_the_job(fakes: Fakes, tmp_path: Path) -> None:
    fakes.add("sbatch", "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", 1)
    with pytest.raises(client.SlurmError) as late:
        submitted(tmp_path)
    fakes.add("sbatch", "", "sbatch: error: Batch job submission failed: Invalid account\n", 1)
    with pytest.raises(client.SlurmError) as refused:
        submitted(tmp_path)
    assert (late.value.unanswered, refused.value.unanswered) == (True, False)


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
    with pytest.raises(client.SlurmError) as caught:
        client.sbatch("x.sh", RECORDED[label]["command"][2:])
    assert str(caught.value) == f"{' '.join(RECORDED[label]['command'])} x.sh: {why}"
    assert (caught.value.code, caught.value.stderr) == (1, RECORDED[label]["stderr"])
    assert caught.value.command[-1] == "x.sh"


def test_a_command_that_takes_too_long_is_ended_with_its_children(fakes: Fakes) -> None:
    fakes.add("squeue", first="(sleep 5; echo late)")  # a child that would be heard, were only the shell ended
    with run.recorded() as answers, pytest.raises(client.SlurmTimeout, match="squeue x: no answer in 0 s"):
        client.run("squeue", "x", timeout=0.3)
    assert [(answer.code, answer.stdout) for answer in answers] == [(None, "")]


def test_no_slurm_on_this_machine(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fakes.folder))
    assert not client.available()
    with pytest.raises(client.SlurmMissing, match="^squeue -r .*: not found on the PATH"):
        client.squeue([1])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        client.run("/bin/true", cwd=tmp_path / "nowhere")


def test_an_answer_that_cannot_be_read_is_shown(fakes: Fakes) -> None:
    fakes.add("squeue", "maintenance until noon\n")
    with pytest.raises(
        client.SlurmError, match="cannot read its answer: .*13 fields expected: 'maintenance until noon'"
    ):
        client.squeue([1])
    fakes.add("scontrol", "nothing of use\n")
    fakes.add("sinfo")
    with pytest.raises(client.SlurmError, match=r"cannot read its answer: KeyError\('ClusterName'\)"):
        client.cluster()


def test_bytes_that_are_no_text_do_no_harm(fakes: Fakes) -> None:
    line = said("one array").splitlines()[0].replace("JobArrayTaskLimit", "r\udce9servation")
    fakes.add("squeue")
    (fakes.folder / "squeue.out").write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    assert client.squeue([1])[0].reason == "r\ufffdservation"


def test_log_to_keeps_raw_answers_for_a_bug_report(fakes: Fakes, tmp_path: Path) -> None:
    log = tmp_path / "slurm.jsonl"
    fakes.add_recorded("one array")
    hook = run.log_to(log)
    run.hooks.append(hook)
    try:
        client.squeue([12])
        client.squeue([12])
    finally:
        run.hooks.remove(hook)
    first, second = (json.loads(line) for line in log.read_text().splitlines())
    assert first["stdout"] == second["stdout"] == said("one array") and first["command"][0] == "squeue"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_cluster_in_two_commands(fakes: Fakes) -> None:
    fakes.add_recorded("cluster")
    fakes.add_recorded("cluster 2")
    found = client.cluster()
    assert client.count == {"scontrol": 1, "sinfo": 1}
    assert (found.name, found.max_array_size, found.settings["SlurmctldHost[0]"]) == ("lab", 1001, "head1(127.0.0.1)")
    assert [partition.name for partition in found.partitions] == ["main", "short", "dead", "wide"]
    assert found.default_partition is found.partition("main") and found.partition("nope") is None


def test_the_clusters_name_in_one_command_a_process(fakes: Fakes) -> None:
    client._cluster_name.cache_clear()
    fakes.add("scontrol", stderr="scontrol: error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(client.SlurmError, match="Unable to contact"):
        client.cluster_name()
    fakes.add("scontrol", said("cluster").partition("scontrol: show partition")[0])
    assert [client.cluster_name(), client.cluster_name()] == ["lab", "lab"]
    assert client.count == {"scontrol": 2}, "a failure is not kept, the name is"
    client._cluster_name.cache_clear()


def test_scontrol_without_readline_writes_its_prompt_in_front_of_the_answer(fakes: Fakes) -> None:
    text = (
        said("cluster")
        .replace("scontrol: show config\n", "scontrol: ")
        .replace("scontrol: show partition\n", "scontrol: ")
    )
    assert "scontrol: PartitionName=main" in text
    fakes.add("scontrol", text)
    fakes.add_recorded("cluster 2")
    assert [partition.name for partition in client.cluster().partitions] == ["main", "short", "dead", "wide"]


def test_version_and_controllers(fakes: Fakes) -> None:
    fakes.add_recorded("version")
    assert client.available() and client.version() == (22, 5, 8)
    fakes.add("sbatch", "slurm 24.11.0-0rc1\n")
    assert client.version() == (24, 11, 0)
    fakes.add_recorded("ping")
    assert client.ping() == {"head1": True}
    fakes.add("scontrol", "Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is DOWN\n", code=1)
    assert client.ping() == {"a": False, "b": False}
    fakes.add("scontrol", stderr="scontrol: fatal: Could not establish a configuration source\n", code=1)
    with pytest.raises(client.SlurmError, match="^scontrol ping: Could not establish a configuration source$"):
        client.ping()


def test_accounts_of_this_user(fakes: Fakes) -> None:
    fakes.add_recorded("associations")
    assert [row.account for row in client.associations("ann") or []] == ["research", "root"]
    assert fakes.args("sacctmgr")[2:6] == ["show", "user", "ann", "withassoc"]
    fakes.add("sacctmgr", stderr="You are not running a supported accounting_storage plugin\n", code=1)
    assert client.associations() is None
    fakes.add("sacctmgr", stderr="sacctmgr: error: Unable to contact slurmdbd\n", code=1)
    with pytest.raises(client.SlurmError, match="Unable to contact slurmdbd"):
        client.associations()


def test_ctrl_c_does_not_end_an_sbatch_that_is_half_way(fakes: Fakes) -> None:
    """The terminal's Ctrl-C goes to the whole process group; the submission must not be torn in two by it."""
    fakes.add("sbatch", "7\n", first="touch started; sleep 0.5; touch submitted")
    program = "from launcher.slurm import client; client.sbatch('x')"
    child = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stderr=subprocess.DEVNULL)
    while not (fakes.folder / "started").exists():
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(10)
    time.sleep(0.8)
    assert (fakes.folder / "submitted").exists()


def test_importing_it_is_light() -> None:
    heavy = "{'torch', 'hydra', 'omegaconf', 'submitit', 'nemo'}"
    program = f"import sys, launcher.slurm.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
