"""The scripts in sbatch/, sound as they are read and as they are filled in; render, preference_write, the pipeline."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launcher
from launcher.commands import pipeline as pipeline_command
from launcher.commands import render as render_command
from launcher.slurm import client, template
from launcher.slurm.container import Inside, inside
from launcher.slurm.script import ArrayRequest, text
from launcher.submit import rendering, stages
from launcher.submit.to_folder import _is_whole_array
from launcher.trial_config.cluster import Cluster, Container

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("convert_checkpoint", "dpo", "prepare_data", "report", "sweep")
FILLED = (*NAMES, "sweep_side_by_side")
_CLUSTER: dict[str, Any] = {
    "name": "slurm",
    "time": 60, "signal_delay_s": 120, "array_parallelism": 256, "gpus_per_node": 8, "mem_gb": 500, "partition": "gpu",
    "cpus_per_task": 4, "setup": ["module load cuda"], "teardown": ["date"], "srun_args": ["--mpi=pmix"],
    "sbatch": {"licenses": "nemo:1", "gres": "gpu:8"}, "reservation": None, "comment": "it's $(mine)",
    "exclusive": True, "nodelist": "n[1-2]", "python": None, "environment": {"B": "$(b) 'c'", "A": ""},
    "container": {"runtime": None},
}  # fmt: skip
CLUSTER = Cluster.model_validate(_CLUSTER)
STAGE = stages.Stage(
    name="prepare_data",
    command=["-u", "/clone/data_prep/prepare_data.py", "it's", "--out", "/d/a b"],
    makes=Path("/d/a b"),
    files=frozenset(),
    made_in=Path("/d/a b"),
    proof=Path("/d/a b/dataset.json"),
)


# -- filling in --------------------------------------------------------------------------------------------------------


def filled(assignments: dict[str, Any], **lines: Any) -> str:
    return template.fill("prepare_data", ["#SBATCH --x=y"], assignments, **lines)


def printed(script: str, *names: str) -> list[str]:
    """What bash makes of the variables in a filled-in head: the words of each."""
    head = script.partition("# -- the same in every script")[0]
    show = "".join(f"printf '%s\\0' \"${{{name}[@]}}\"; printf '\\1\\0';" for name in names)
    done = subprocess.run(["/bin/bash", "-uc", head + show], capture_output=True, text=True, env={})
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.split("\0")[:-1]


def test_the_head_is_written_anew_and_the_rest_is_the_scripts_own() -> None:
    made = filled({"a": 2, "b": "x y"})
    plain = template.read("prepare_data")
    mark = "# -- the same in every script"
    assert made.partition(mark)[2] == plain.partition(mark)[2]
    assert "a=2\nb='x y'\n" in made and "LAUNCHER" not in made
    assert made.splitlines()[2:3] == ["#SBATCH --x=y"] and "--mem=8G" not in made
    assert made.splitlines()[:2] == plain.splitlines()[:2]


def test_several_words_become_an_array() -> None:
    assert printed(filled({"xs": ["$a", "b c", 3], "none": []}), "xs", "none") == ["$a", "b c", "3", "\1", "", "\1"]


def test_setup_and_teardown_stand_before_and_after_the_work() -> None:
    lines = filled({}, setup=["module load x"], teardown=["date", "date -u"]).splitlines()
    assert lines.index("export_environment") < lines.index("module load x") < lines.index("run_command")
    assert lines.index("run_command") < lines.index("date") < lines.index("date -u") < lines.index('exit "$status"')


def test_words_of_shell_are_taken_as_they_are() -> None:
    made = filled({"python": [template.Words('"$PY" -X dev'), "$PY"]}, first=["PY='my python'"])
    assert printed(made, "python") == ["my python", "-X", "dev", "$PY", "\1"]


def test_the_functions_are_found_by_an_absolute_path() -> None:
    assert printed(filled({}), "functions") == [str(ROOT / "sbatch" / "functions.sh"), "\1"]


@pytest.mark.parametrize("value", ["a b", "7", "$(touch x)", "`x`", "it's", 'a"b', "a\nb", "", "\\", Path("/x y"), 1])
def test_a_value_is_the_very_text(value: Any) -> None:
    assert printed(filled({"v": value, "w": [value]}), "v", "w") == [str(value), "\1", str(value), "\1"]


@pytest.mark.parametrize("name", NAMES)
def test_scripts_of_a_kind_differ_in_their_heads_only(name: str) -> None:
    body = template.read(name).partition("# -- what is run")[2].partition("# -- the same in every script")[2]
    like = template.read("sweep" if name in ("dpo", "sweep") else "report")
    assert body and body == like.partition("# -- the same in every script")[2]


def test_srun_stands_once() -> None:
    texts = [path.read_text() for path in sorted((ROOT / "sbatch").iterdir())]
    calls = [line for text in texts for line in text.splitlines() if re.search(r"\bsrun --", line)]
    assert len(calls) == 1, calls


# -- the scripts -------------------------------------------------------------------------------------------------------


def filled_in(name: str) -> str:
    """One script, with values that would do harm if they were not quoted; what depends on this machine is replaced."""
    return _filled_in(name).replace(shlex.quote(sys.executable), "python").replace(str(ROOT), "/clone")


def _filled_in(name: str) -> str:
    pyxis = Inside("pyxis", ["--container-image=a b"], ["bash", str(ROOT / "sbatch" / "in_container.sh")])
    if name in ("sweep", "sweep_side_by_side"):
        share, nodes, ranks = (1, 2, 8) if name == "sweep" else (2, 1, 3)
        cluster = CLUSTER.model_copy(update={"environment": {"A": "b c"}, "python": "python"})
        request = ArrayRequest(
            sweep=Path("/runs/it's $(s)"), name="dpo-1", trials=[0, 1, 2], nodes=nodes, ranks_per_node=ranks,
            share=share, cluster=cluster, container=pyxis if share == 1 else Inside(),
            pythonpath="/clone", after=[41, 42], python_on_node="/env of mine/python",
        )  # fmt: skip
        return text(request)
    output = "/runs/it's/x-%j.out"
    if name == "report":
        return stages.report_text(Path("/runs/it's"), CLUSTER, name="r", output=output, after=[7], memory=True)
    if name == "dpo":
        request = ArrayRequest(
            sweep=Path("/runs/$x"), name="dpo", trials=[0], nodes=2, ranks_per_node=8, cluster=CLUSTER,
            python_on_node="/env of mine/python",
        )  # fmt: skip
        command = ["model=tiny", "experiment.name='it'"]
        return rendering.dpo_text(request, Path("/a b"), STAGE, command)
    stage = stages.Stage(**{**STAGE.__dict__, "name": name})
    return stages.text(stage, CLUSTER, name=f"x-{name}", output=output, after=[3])


@pytest.mark.parametrize(("name", "filled"), [*((name, False) for name in NAMES), *((name, True) for name in FILLED)])
def test_shellcheck_and_bash(name: str, filled: bool, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.sh"
    script.write_text(filled_in(name) if filled else template.read(name))
    shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "-x", "--severity=style", str(script)]
    if filled:
        shellcheck.append("--exclude=SC2016")  # that a quoted value has a $ in it is the point
    for command in (shellcheck, ["/bin/bash", "-n", str(script)]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)  # it follows sbatch/functions.sh
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["functions.sh", "in_container.sh"])
def test_shellcheck_of_what_the_scripts_share(name: str) -> None:
    shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "--severity=style", f"sbatch/{name}"]
    done = subprocess.run(shellcheck, capture_output=True, text=True, cwd=ROOT)
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


def test_a_stage_where_memory_is_asked_for_by_the_cpu() -> None:
    """Some sites refuse --mem and demand --mem-per-cpu: a stage takes as many CPUs as its memory needs."""
    made = stages.directives(CLUSTER.model_copy(update={"sbatch": {"mem_per_cpu": "3968M"}}), "name", "out", mem_gb=8)
    assert "#SBATCH --mem-per-cpu=3968M" in made and "#SBATCH --cpus-per-task=3" in made
    assert not [line for line in made if line.startswith("#SBATCH --mem=")]


def test_stages_may_have_a_partition_without_gpus() -> None:
    made = stages.directives(CLUSTER.model_copy(update={"stages_partition": "cpu"}), "name", "out")
    assert "#SBATCH --partition=cpu" in made and "#SBATCH --partition=gpu" not in made


def test_a_name_that_is_no_variable_never_gets_into_a_script() -> None:
    with pytest.raises(launcher.findings.Refused, match=r"cluster.environment.A;touch /x"):
        stages.surroundings(CLUSTER.model_copy(update={"environment": {"A;touch /x": "1"}}), Inside())


def test_a_stage_in_a_container_sees_what_it_reads_and_writes(tmp_path: Path) -> None:
    container = {"runtime": "pyxis", "image": "nemo", "mounts": ["/m"]}
    own = {"environment": {"PYTHONPATH": f"{tmp_path}:/nowhere"}}  # packages that the job brings along
    cluster = Cluster.model_validate({**_CLUSTER, "python": "python", "container": container, **own})
    stage = stages.Stage(**{**STAGE.__dict__, "reads": [Path("/pairs")]})
    (mounts,) = [word for word in stages.inside(stage, cluster).srun_args if "mounts" in word]
    option, _, listed = mounts.partition("=")  # their order depends on how deep the clone lies; see test_container
    assert option == "--container-mounts"
    read = [f"{path}:{path}:ro" for path in ("/pairs", ROOT, tmp_path)]
    assert sorted(listed.split(",")) == sorted([*read, "/m:/m", "/d/a b:/d/a b"])
    assert inside(Container(), "in_container.sh", read=["/a"], written=[], folder="/a").srun_args == ()
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


@pytest.mark.parametrize("stage", ["sweep", "dpo"])
def test_render_where_model_and_data_do_not_exist_yet(stage: str, tmp_path: Path) -> None:
    """It is what people read first: the script is printed, and what is missing is named."""
    done = rendered(tmp_path, stage, "model=tiny", "data=sample")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n") and "\ntrain\n" in done.stdout
    (model,) = [line for line in done.stderr.splitlines() if "tiny.nemo" in line]
    assert model.startswith("does not exist yet: ") and "convert_checkpoint.py" in model
    assert ("train.jsonl: no such file" in done.stderr) == (stage == "sweep"), "dpo makes its data itself"
    assert listing(tmp_path) == []
    refused = rendered(tmp_path, stage, "model=tiny", "data=sample", "trainer.devices=3")
    assert (refused.returncode, refused.stdout) == (2, "") and "global_batch_size" in refused.stderr


MAIN = str(ROOT / "launcher" / "main.py")
ELEMENT = {
    "SWEEP": "a $(b), 'c'", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1",
    "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_JOB_NAME": "x", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_CLUSTER_NAME": "lab",
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
    assert [(job.id, job.trials, job.cluster) for job in sweep.jobs] == [("4711", [0, 1], "lab")]
    again = run(workspace, MAIN, *WRITE, env=ELEMENT)
    assert again.returncode == 0 and "has been written already" in again.stdout
    other = run(workspace, MAIN, *WRITE, "model.seed=7", env=ELEMENT)
    assert other.returncode == 2 and "exists already" in other.stderr


def test_write_holds_the_trial_against_its_job(workspace: Path) -> None:
    done = run(workspace, MAIN, *WRITE, "trainer.devices=2", env=ELEMENT)
    assert done.returncode == 2 and "trainer.devices=2: this job has 1" in done.stderr
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
