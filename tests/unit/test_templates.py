"""The scripts in sbatch/, sound as they are read and as they are filled in; render, preference_write, the pipeline."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

import launcher
from launcher.commands import pipeline as pipeline_command
from launcher.commands import render as render_command
from launcher.slurm import client, template
from launcher.slurm.container import inside
from launcher.slurm.script import ArrayRequest, text
from launcher.submit import stages
from launcher.submit.to_folder import _is_whole_array

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("convert_checkpoint", "dpo", "prepare_data", "report", "sweep")
FILLED = (*NAMES, "sweep_side_by_side")
CLUSTER: dict[str, Any] = {
    "time": 60, "signal_delay_s": 120, "array_parallelism": 256, "gpus_per_node": 8, "mem_gb": 500, "partition": "gpu",
    "cpus_per_task": 4, "setup": ["module load cuda"], "teardown": ["date"], "srun_args": ["--mpi=pmix"],
    "sbatch": {"licenses": "nemo:1", "gres": "gpu:8"}, "reservation": None, "comment": "it's $(mine)",
    "exclusive": True, "nodelist": "n[1-2]", "python": None, "environment": {"B": "$(b) 'c'", "A": ""},
    "container": {"runtime": None},
}  # fmt: skip
STAGE = stages.Stage(
    name="prepare_data",
    command=["-u", "/clone/data_prep/prepare_data.py", "it's", "--out", "/d/a b"],
    makes=Path("/d/a b"),
    files=frozenset(),
    made_in=Path("/d/a b"),
    proof=Path("/d/a b/dataset.json"),
)


# -- the renderer ------------------------------------------------------------------------------------------------------


def test_a_comment_stands_for_the_next_line() -> None:
    made = template.render("a\n#= n={{ n }} m={{ m | quote }}\nn=${N:-1}\nb\n", n=2, m="x y")
    assert made == "a\nn=2 m='x y'\nb\n"


def test_several_stand_for_it_together() -> None:
    made = template.render("#= {% for x in xs %}\n#= echo {{ x | quote }}\n#= {% endfor %}\necho\nb\n", xs=["$a", "b"])
    assert made == "echo '$a'\necho b\nb\n"


def test_a_block_is_replaced_up_to_its_end() -> None:
    text = "if x; then\n    #== {% if y %}\n    #== y\n    #== {% endif %}\n    # not y\n    z\n    #==\nfi\n"
    assert template.render(text, y=True) == "if x; then\n    y\nfi\n"
    assert template.render(text, y=False) == "if x; then\nfi\n"


def test_what_is_not_in_such_a_comment_is_taken_as_it_is() -> None:
    shell = 'echo "${#a[@]} {{ x }} {% y %}" {# z #}\n'
    assert template.render(shell) == shell


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        template.render("#= {{ n }}\nx\n")


@pytest.mark.parametrize("value", ["a b", "7", None, True, 1.5, Path("/x")])
def test_a_value_that_is_not_quoted_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="unquoted"):
        template.render("#= {{ v }}\nx\n", v=value)


@pytest.mark.parametrize("text", ["#= a\n", "#== a\nb\n", "#== a\n#= b\nc\n#==\n"])
def test_a_mark_without_its_end(text: str) -> None:
    with pytest.raises(ValueError, match="stands? between|ends inside"):
        template.render(text)


# -- the scripts -------------------------------------------------------------------------------------------------------


def filled_in(name: str) -> str:
    """One script, with values that would do harm if they were not quoted."""
    if name in ("sweep", "sweep_side_by_side"):
        share, nodes, ranks = (1, 2, 8) if name == "sweep" else (2, 1, 3)
        request = ArrayRequest(
            sweep=Path("/runs/it's $(s)"), name="dpo-1", trials=[0, 1, 2], nodes=nodes, ranks_per_node=ranks,
            share=share, cluster=CLUSTER, python="python", srun_args=["--container-image=a b"], pythonpath="/clone",
            environment={"A": "b c"}, after=[41, 42], python_here="/env of mine/python",
        )  # fmt: skip
        return text(request)
    output = "/runs/it's/x-%j.out"
    if name == "report":
        made = stages.report_text(Path("/runs/it's"), CLUSTER, name="r", output=output, after=[7], memory=True)
        return made.replace(shlex.quote(sys.executable), "python").replace(shlex.quote(str(ROOT)), "/clone")
    if name == "dpo":
        surroundings = stages.surroundings(CLUSTER)
        step = {"proof": "/d/a b", "made_in": "/d", "srun_args": ["--x=y z"], "command": "python -u prepare.py 'a b'"}
        return template.render(
            template.read("dpo"), directives=["#SBATCH --array=0-0%1"], nodes=2, ranks_per_node=8, folder="/a b",
            root="/clone", runs="/runs/$x", before=[step], writer="python /clone/launcher/main.py",
            overrides=["model=tiny", "experiment.name='it'"], srun_args=["--y=z z"], python="python",
            python_here="/env of mine/python", **surroundings,
        )  # fmt: skip
    made = stages.text(
        stages.Stage(**{**STAGE.__dict__, "name": name}), CLUSTER, name=f"x-{name}", output=output, after=[3]
    )
    return made.replace(shlex.quote(sys.executable), "python")


@pytest.mark.parametrize(("name", "filled"), [*((name, False) for name in NAMES), *((name, True) for name in FILLED)])
def test_shellcheck_and_bash(name: str, filled: bool, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.sh"
    script.write_text(filled_in(name) if filled else template.read(name))
    shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "--severity=style", str(script)]
    if filled:
        shellcheck.append("--exclude=SC2016")  # that a quoted value has a $ in it is the point
    for command in (shellcheck, ["/bin/bash", "-n", str(script)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", FILLED)
def test_golden(name: str) -> None:
    """Set UPDATE_GOLDEN to write them anew, and read the diff."""
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(filled_in(name))
    assert filled_in(name) == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_head_says_how_to_use_it(name: str) -> None:
    head = template.read(name).partition("\n#SBATCH")[0]
    assert re.search(rf"^#     (\w+=\S.* )?sbatch .*sbatch/{name}\.sbatch", head, re.MULTILINE), head
    assert "# Variables:" in head
    for variable in re.findall(r"^#     ([A-Z]+) ", head, re.MULTILINE):
        assert f"${{{variable}:" in template.read(name), variable


def test_a_stage_asks_for_no_gpus_and_one_node() -> None:
    made = filled_in("prepare_data")
    for absent in ("gpu:8", "gpus", "exclusive", "nodelist", "--array", "--signal", "512000M"):
        assert absent not in made
    for present in ("--nodes=1", "--partition=gpu", "--licenses=nemo:1", "afterok:3", "--kill-on-invalid-dep=yes"):
        assert present in made


def test_a_name_that_is_no_variable_never_gets_into_a_script() -> None:
    with pytest.raises(launcher.findings.Refused, match=r"cluster.environment.A;touch /x"):
        stages.surroundings({**CLUSTER, "environment": {"A;touch /x": "1"}})


def test_a_stage_in_a_container_sees_what_it_reads_and_writes() -> None:
    cluster = {**CLUSTER, "python": "python", "container": {"runtime": "pyxis", "image": "nemo", "mounts": ["/m"]}}
    stage = stages.Stage(**{**STAGE.__dict__, "reads": [Path("/pairs")]})
    (mounts,) = [word for word in stages.inside(stage, cluster).srun_args if "mounts" in word]
    assert mounts == f"--container-mounts={ROOT}:{ROOT}:ro,/pairs:/pairs:ro,/d/a b:/d/a b,/m:/m"
    assert inside({}, ["/a:/a"]).srun_args == ()
    assert stages.light_python(cluster) != "python"


def test_the_plain_array_says_what_is_wrong_with_betas() -> None:
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_JOB_ID": "1"}
    numbers = {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_ID": "0"}
    for betas, said in ((None, "name one beta for each array element"), ("0.1 0.2", "submit with --array=0-1")):
        given = {**env, **numbers, **({"BETAS": betas} if betas else {})}
        done = subprocess.run(
            ["/bin/bash", str(ROOT / "sbatch" / "sweep.sbatch")], env=given, capture_output=True, text=True
        )
        assert done.returncode != 0 and said in done.stderr


# -- render, preference_write, pipeline --------------------------------------------------------------------------------


def run(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run([sys.executable, *words], cwd=folder, env=given, capture_output=True, text=True, timeout=120)


def rendered(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import argparse, sys; from launcher.commands import render as m; p = argparse.ArgumentParser(); m.add(p);"
        "sys.exit(m.run(p.parse_args(sys.argv[1:])))"
    )
    return run(folder, "-c", code, *words, env={"PATH": "/nowhere"})


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_render_the_sweep(workspace: Path) -> None:
    before = listing(workspace)
    done = rendered(workspace, "sweep", "model=tiny", "data=sample", "-m", "model.dpo.ref_policy_kl_penalty=0.1,0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n") and "#SBATCH --array=0-1%2" in done.stdout
    assert re.search(rf"^sweep={workspace}/runs/dpo/\d{{4}}-", done.stdout, re.MULTILINE)
    assert "not checked against a cluster" in done.stderr or "nothing is checked" in done.stderr
    assert listing(workspace) == before


@pytest.mark.parametrize("stage", ["prepare_data", "convert_checkpoint", "dpo"])
def test_render_the_other_stages(stage: str, workspace: Path) -> None:
    before = listing(workspace)
    done = rendered(workspace, stage, "model=tiny", "data=sample", "cluster.partition='a b'")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition='a b'" in done.stdout
    assert listing(workspace) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "model=tiny", "data=sample", "model.global_batch_size=9"], "at most 8"),
        (["sweep", "model=tiny", "data=sample", "cluster=local"], "cluster=local: runs on this machine"),
        (["dpo", "model=tiny", "data=sample", "model.seed=1,2"], "add -m"),
        (["convert_checkpoint", "data=sample"], "--checkpoint FOLDER"),
        (["prepare_data", "model=tiny", "data=sample", "--pairs", "nowhere.jsonl"], "no such file"),
        (["sweep", "model=tiny", "data=sample", "cluster.environment={a-b: 1}"], "is no name of a variable"),
    ],
)
def test_render_refuses(words: list[str], said: str, workspace: Path) -> None:
    done = rendered(workspace, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


MAIN = str(ROOT / "launcher" / "main.py")
ELEMENT = {
    "SWEEP": "a $(b), 'c'", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1",
    "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_JOB_NAME": "x", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1",
}  # fmt: skip
WRITE = (
    "--multirun", "hydra/launcher=preference_write", "cluster=slurm", "hydra.sweep.dir=${oc.env:SWEEP}", "model=tiny",
    "data=sample", "model.dpo.ref_policy_kl_penalty=0.1,0.5",
)  # fmt: skip


def test_write_only_writes_and_does_so_once(workspace: Path) -> None:
    from launcher.sweep.folder import Sweep

    first = run(workspace, MAIN, *WRITE, env=ELEMENT)
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    sweep = Sweep.load(workspace / ELEMENT["SWEEP"])
    assert [trial.beta for trial in sweep.trials] == [0.1, 0.5]
    assert [(job["id"], job["trials"]) for job in sweep.jobs] == [("4711", [0, 1])]
    again = run(workspace, MAIN, *WRITE, env=ELEMENT)
    assert again.returncode == 0 and "is written already" in again.stdout
    other = run(workspace, MAIN, *WRITE, "model.seed=7", env=ELEMENT)
    assert other.returncode == 2 and "is there already" in other.stderr


def test_write_holds_the_trial_against_its_job(workspace: Path) -> None:
    done = run(workspace, MAIN, *WRITE, "trainer.devices=2", env=ELEMENT)
    assert done.returncode == 2 and "trainer.devices=2: but this job has 1" in done.stderr
    assert not (workspace / ELEMENT["SWEEP"]).exists()


def test_which_array_is_a_whole_sweep() -> None:
    assert _is_whole_array(2, ELEMENT)
    assert not _is_whole_array(3, ELEMENT)
    assert not _is_whole_array(2, {**ELEMENT, "SLURM_ARRAY_TASK_MIN": "1"})
    assert not _is_whole_array(2, {})


def test_pipeline_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "available", lambda: False)
    with pytest.raises(launcher.findings.Refused, match="make sweep"):
        pipeline_command.run(None)  # type: ignore[arg-type]


def test_hydras_options_may_stand_anywhere() -> None:
    import argparse

    for module, first in ((pipeline_command, []), (render_command, ["sweep"])):
        parser = argparse.ArgumentParser()
        module.add(parser)
        for words in (["-m", "a=1", "b=2"], ["a=1", "-m", "b=2"], ["a=1", "b=2"]):
            assert parser.parse_args([*first, *words]).overrides == ["a=1", "b=2"]
