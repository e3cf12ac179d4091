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

CLUSTER: dict[str, Any] = {
    "time": 60, "signal_delay_s": 120, "array_parallelism": 256, "gpus_per_node": 8, "mem_gb": None, "setup": [],
    "teardown": [], "srun_args": [], "sbatch": {}, "reservation": None, "comment": None, "partition": None,
}  # fmt: skip


def request(**changes: Any) -> ArrayRequest:
    cluster = {**CLUSTER, **changes.pop("cluster", {})}
    base: dict[str, Any] = {"sweep": Path("/shared/s"), "name": "dpo-1", "trials": [0, 1, 2], "nodes": 2}
    return ArrayRequest(**{**base, "ranks_per_node": 8, "cluster": cluster, "python": "python", **changes})


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
            cluster={"comment": comment},
            environment={"ODD": value},
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
        text(request(cluster={"setup": ["module load x"]}, container=Inside("", ["--a=b c"]), environment={"A": "b"}))
    )
    done = subprocess.run(
        [str(Path(sys.executable).with_name("shellcheck")), "-x", "--severity=style", str(script)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == ""


def test_python_words_stay_words() -> None:
    assert "python=('/a b/python')" in text(request(python=shlex.join(["/a b/python"]))).splitlines()


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
