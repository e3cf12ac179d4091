"""The sbatch script: what submitit knows means the same here, free options come through, and no text becomes shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.findings import Refused
from launcher.slurm.container import Inside
from launcher.slurm.script import ArrayRequest, parameters, text
from launcher.trial_config.cluster import Cluster

CLUSTER: dict[str, Any] = {
    "name": "slurm", "python": "python",
    "time": 60, "signal_delay_s": 120, "array_parallelism": 256, "gpus_per_node": 8, "mem_gb": None, "setup": [],
    "teardown": [], "srun_args": [], "sbatch": {}, "reservation": None, "comment": None, "partition": None,
}  # fmt: skip


def request(comment: str | None = None, **changes: Any) -> ArrayRequest:
    """With a `comment` that a config may not hold, if one is given."""
    cluster = Cluster.model_validate({**CLUSTER, **changes.pop("cluster", {})})
    cluster = cluster if comment is None else cluster.model_copy(update={"comment": comment})
    base: dict[str, Any] = {"sweep": Path("/shared/s"), "name": "dpo-1", "trials": [0, 1, 2], "nodes": 2}
    return ArrayRequest(**{**base, "ranks_per_node": 8, "cluster": cluster, **changes})


def lines(made: str) -> list[str]:
    return [line for line in made.splitlines() if line.startswith("#SBATCH")]


def test_one_array_of_multi_node_jobs() -> None:
    made = lines(
        text(request(cluster={"partition": "gpu", "mem_gb": 500, "sbatch": {"licenses": "nemo:1", "gres": "x"}}))
    )
    for expected in (
        "--array=0-2%3", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=60", "--partition=gpu",
        "--mem=512000M", "--licenses=nemo:1", "--gres=x", "--signal=USR2@120", "--requeue", "--job-name=dpo-1",
    ):  # fmt: skip
        assert f"#SBATCH {expected}" in made
    assert not any("wckey" in line for line in made)


def test_a_single_trial_is_an_array_too() -> None:
    assert "#SBATCH --array=0-0%1" in lines(text(request(trials=[7])))
    assert "trials=(7)" in text(request(trials=[7]))


def test_parallelism() -> None:
    assert "#SBATCH --array=0-2%1" in lines(text(request(cluster={"array_parallelism": 1})))


def test_gpus_of_a_type_and_all_of_a_nodes_memory() -> None:
    made = lines(text(request(share=2, cluster={"gpus_per_node": "a100:4", "mem_gb": 0})))
    assert "#SBATCH --gpus-per-node=a100:8" in made and "#SBATCH --mem=0" in made


@pytest.mark.parametrize("option", ["array", "output", "nodes", "--partition", "a b", "job-name"])
def test_options_that_are_the_launchers_own(option: str) -> None:
    if option == "job-name":
        option = "job_name"
    with pytest.raises(Refused):
        parameters(request(cluster={"sbatch": {option: "x"}}))


def test_a_line_break_ends_no_directive() -> None:
    made = text(request(name="a\nrm -rf ~", cluster={"comment": "x\n#SBATCH --partition=evil\ntouch /tmp/y"}))
    assert "#SBATCH --job-name='a rm -rf ~'" in made.splitlines()
    assert not any(line.startswith(("touch", "rm", "#SBATCH --partition")) for line in made.splitlines())
    with pytest.raises(Refused, match="line break"):
        parameters(request(cluster={"partition": "a\nb"}))


#: In place of the commands that a script runs.
NOTHING_RUNS = "srun() { :; }; squeue() { :; }; tail() { :; }; mkdir() { :; }; timeout() { :; }; write_sweep=(:)\n"
ROOT = Path(__file__).resolve().parents[3]
odd = st.text(st.characters(blacklist_categories=("Cs", "Cc")) | st.sampled_from(list("\n$`'\"\\ ;&|(){}")), min_size=1)


@settings(max_examples=60, deadline=None)
@given(name=odd, comment=odd, folder=odd, value=odd)
def test_odd_texts_never_run_and_never_break_the_script(name: str, comment: str, folder: str, value: str) -> None:
    """bash reads the script and prints what it made of the folder and the variable: the very texts, nothing run."""
    if "\0" in folder + value or "/" in folder:
        return
    made = text(
        request(
            name=name,
            sweep=Path("/shared") / folder,
            cluster={"environment": {"ODD": value}},
            comment=comment,
            trials=[3],
            python_on_node="no python",
        )
    ).replace("exec >>", ": ")
    shown = NOTHING_RUNS + made.replace('end "$@"', 'printf "%s\\0%s" "${started[0]}" "$ODD"')
    environment = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "1", "SLURM_JOB_ID": "1", "PATH": ""}
    done = subprocess.run(["/bin/bash", "-euc", shown], capture_output=True, text=True, env=environment)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.split("\0") == [f"{Path('/shared') / folder}/3", value]


def test_shellcheck(tmp_path: Path) -> None:
    script = tmp_path / "sweep.sh"
    script.write_text(
        text(
            request(cluster={"setup": ["module load x"], "environment": {"A": "b"}}, container=Inside("", ["--a=b c"]))
        )
    )
    done = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), "-x", "--severity=style", str(script)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == ""


def test_python_words_stay_words() -> None:
    assert "python=('/a b/python')" in text(request(cluster={"python": shlex.join(["/a b/python"])})).splitlines()


@pytest.mark.parametrize(("stopped", "code"), [(True, 0), (False, 7)])
def test_without_a_python_on_the_node_a_warned_trial_is_requeued_all_the_same(
    tmp_path: Path, stopped: bool, code: int
) -> None:
    note = '"$(dirname "$TRIAL")/3/log/8.0_stopped.json"' if stopped else "/dev/null"
    stand_ins = f"""squeue() {{ echo 1700000010; }}; python3() {{ false; }}
    srun() {{ echo "ends $TRIAL_ENDS_AT"; touch {note}; return {code}; }}; scontrol() {{ echo "scontrol $*"; }}
    TRIAL={shlex.quote(str(tmp_path / "x"))}
    """
    script = stand_ins + text(request(sweep=tmp_path, trials=[1, 3], python_on_node="/nowhere/python"))
    env = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "8", "SLURM_JOB_ID": "8", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, env=env)
    expected = ["ends 1700000000", *(["scontrol requeue 8_1"] if stopped else [])]
    assert (done.stdout.splitlines(), done.returncode, done.stderr) == (expected, code, "")


def test_requeue_can_be_forbidden() -> None:
    assert "#SBATCH --no-requeue" in lines(text(request(cluster={"requeue": False})))


def ran(folder: Path, made: str, commands: str = "", **env: str) -> tuple[dict[str, str], list[str], str]:
    """Run a script as Slurm would, in `folder`: (srun's environment, its words, what the script printed)."""
    stand_ins = f"squeue() {{ echo 1700000010; }}; scontrol() {{ :; }}; {commands}\n"
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f"#!/bin/bash\nenv -0 >'{folder}/env'\nprintf '%s\\0' \"$@\" >'{folder}/words'\n")
    srun.chmod(0o755)
    numbers = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "8", "SLURM_JOB_ID": "8"}
    given = {**numbers, "PATH": f"{srun.parent}:/usr/bin:/bin", **env}
    done = subprocess.run(["/bin/bash", "-c", stand_ins + made], capture_output=True, text=True, env=given, cwd=folder)
    seen = (pair.partition("=") for pair in (folder / "env").read_text().split("\0")[:-1])
    return (
        {name: value for name, _, value in seen},
        (folder / "words").read_text().split("\0")[:-1],
        done.stdout + done.stderr,
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "sweep.json").write_text("{}")
    (tmp_path / "runs" / "1" / "config.yaml").write_text("cluster:\n  name: slurm\n")
    return tmp_path / "runs"


def test_nothing_is_imported_from_the_folder_that_sbatch_was_called_in(sweep: Path) -> None:
    """Others may be able to write there (/tmp): their modules must not run as this user."""
    hostile = sweep.parent / "launcher" / "job"
    hostile.mkdir(parents=True)
    for name in (hostile.parent / "__init__.py", hostile / "__init__.py", hostile / "begin_end.py"):
        name.write_text("raise SystemExit('hostile code ran')\n")
    (sweep.parent / "json.py").write_text("raise SystemExit('hostile code ran')\n")
    made = text(request(sweep=sweep, trials=[1], pythonpath=str(ROOT), python_on_node=sys.executable))
    env, words, output = ran(sweep.parent, made)
    assert "hostile" not in output and "== start 8.0 == trial 1" in output
    assert f"--chdir={sweep}" in words, "where the ranks' Python, if it is 3.10, imports from"
    assert env["PYTHONSAFEPATH"] == "1" and env["PYTHONPATH"] == str(ROOT)


def test_what_a_session_or_a_site_sets_does_not_reach_srun(sweep: Path) -> None:
    session = {
        "SRUN_CPUS_PER_TASK": "12",
        "SRUN_MEM": "1",
        "PMI_RANK": "0",
        "PMIX_RANK": "0",
        "SLURM_EXPORT_ENV": "NONE",
    }
    made = text(
        request(sweep=sweep, cluster={"environment": {"NCCL_DEBUG": "INFO"}}, trials=[1], python_on_node="none")
    )
    env, _, _ = ran(sweep.parent, made, "python3() { false; }", **session, SLURM_CPUS_PER_TASK="4", HF_TOKEN="secret")
    assert not {"SRUN_MEM", "PMI_RANK", "PMIX_RANK", "SLURM_EXPORT_ENV"} & set(env), "srun would export nothing"
    assert (env["SRUN_CPUS_PER_TASK"], env["HF_TOKEN"], env["NCCL_DEBUG"]) == ("4", "secret", "INFO")


def test_squeues_line_with_the_clusters_name(sweep: Path) -> None:
    made = text(request(sweep=sweep, trials=[1], python_on_node="none"))
    named = "squeue() { printf 'CLUSTER: nautilus\\n1700000010\\n'; }; python3() { false; }"
    env, _, _ = ran(sweep.parent, made, named)
    assert env["TRIAL_ENDS_AT"] == "1700000000"


def test_in_a_container_the_jobs_variables_go_by_other_names(sweep: Path) -> None:
    container = Inside("pyxis", ["--container-image=x"], ["bash", "in_container.sh"])
    variables = {"A": "b c", "PYTHONPATH": "/mine"}
    made = text(
        request(sweep=sweep, trials=[1], container=container, cluster={"environment": variables}, pythonpath="/clone")
    )
    env, words, _ = ran(sweep.parent, made, "python3() { false; }; python() { false; }", PYTHONPATH="/login/node")
    assert (env["IN_CONTAINER_A"], env["LAUNCHER_PYTHONPATH"]) == ("b c", "/clone")
    assert env["IN_CONTAINER_TRIAL_ENDS_AT"] == "1700000000" and env["IN_CONTAINER_PYTHONSAFEPATH"] == "1"
    assert "PYTHONPATH" not in env, "Apptainer would set the node's inside"
    assert words[-7:-1] == ["bash", "in_container.sh", "python", "-u", "-m", "launcher.train.slurm_rank"]
    assert "b c" not in words, "a value may be secret, and everybody sees command lines"


def test_relative_names_hold_though_ranks_start_elsewhere(sweep: Path) -> None:
    made = text(
        request(sweep=Path("runs"), trials=[1], cluster={"python": "env/bin/python"}, python_on_node="env/bin/python")
    )
    made = made.replace("sweep=runs", "sweep=./runs")
    _, words, _ = ran(sweep.parent, made, "python3() { false; }")
    assert f"--chdir={sweep.parent}/./runs" in words and f"{sweep.parent}/env/bin/python" in words
