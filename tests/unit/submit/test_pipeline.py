"""The chain of a pipeline: what becomes of it when sbatch does not answer, and which cluster its jobs are on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.check import cluster_limits, preflight
from launcher.compose import hydra_state
from launcher.compose.trials import PlannedTrial
from launcher.findings import Refused
from launcher.slurm import client, run
from launcher.submit import evaluation, pipeline, stage_shape, stages
from launcher.submit.pipeline import Chain, Sources
from launcher.submit.to_slurm import SubmissionFailed
from launcher.sweep.folder import Sweep
from launcher.trial_config.config import TrialConfig
from tests.unit.check.test_slurm_check import site
from tests.unit.conftest import changed
from tests.unit.slurm.test_slurm_commands import Fakes
from tests.unit.slurm.test_slurm_commands import fakes as fakes
from tests.unit.submit.test_prepare import launcher

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
#: sbatch: writes 41, 42, ...; at the call whose number is in the file `late` it says that it was not answered.
COUNTING = """n=$(cat calls 2>/dev/null || echo 0); n=$((n + 1)); echo $n >calls; cp "$2" "$n.script" 2>/dev/null
echo "$((40 + n))$(cat on 2>/dev/null)" >sbatch.out
if [ "$n" = "$(cat late 2>/dev/null)" ]; then cat late.err >&2; exit 1; fi"""


@pytest.fixture
def trial(composed: Any, workspace: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """A trial whose data and model a pipeline makes first, on the cluster `lab` (main, short, dead, wide)."""
    monkeypatch.setattr(hydra_state, "folder", None)
    monkeypatch.setattr(hydra_state, "names_folder", True)
    monkeypatch.setattr(pipeline, "Site", site)
    preflight._nemo_file.cache_clear()
    preflight._jsonl.cache_clear()
    shutil.rmtree(workspace / "data")
    (workspace / "models" / "tiny.nemo").unlink()
    fakes.add("sbatch", first=COUNTING)
    (fakes.folder / "late.err").write_text(TIMED_OUT)
    fakes.add("scancel")
    words = ("cluster=slurm", "model=tiny", "data=sample", "cluster.python=/env/bin/python")
    config, found = composed(*words, "cluster.mem_gb=4", "cluster.cpus_per_task=1")
    assert found == []
    made: TrialConfig = config
    return made


def submit(trial: TrialConfig, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The pipeline of two such trials. Raises what the pipeline raises."""
    monkeypatch.setattr(pipeline.prepare, "composed", lambda *args: [PlannedTrial(["a=1"], trial)] * 2)
    pipeline.submit(launcher(folder), [], Sources())


def cancelled(answers: list[run.Answer]) -> list[list[str]]:
    return [list(answer.command[1:]) for answer in answers if answer.command[0] == "scancel"]


def test_all_jobs_of_a_pipeline_are_recorded(
    trial: TrialConfig, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run.recorded() as answers:
        submit(trial, monkeypatch, workspace / "sweep")
    jobs = Sweep.load(workspace / "sweep").submitted()
    names = ["convert_checkpoint", "prepare_data", "0", "report"]
    assert [(Path(job.script).stem, job.id) for job in jobs] == list(zip(names, ["41", "42", "43", "44"], strict=True))
    assert cancelled(answers) == []


@pytest.mark.parametrize(("late", "ids"), [(1, []), (2, ["41"]), (3, ["41", "42"]), (4, ["41", "42", "43"])])
def test_a_job_that_sbatch_may_have_submitted_is_recorded_and_cancelled_by_its_name(
    trial: TrialConfig, workspace: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, late: int, ids: list[str]
) -> None:
    """Else the conversion would run unseen, and the next pipeline would start another one beside it."""
    (fakes.folder / "late").write_text(str(late))
    with run.recorded() as answers, pytest.raises(SubmissionFailed) as failed:
        submit(trial, monkeypatch, workspace / "sweep")
    sweep = Sweep.load(workspace / "sweep")
    last = sweep.submitted()[-1]
    assert last.id == "" and "Socket timed out" in str(failed.value) and failed.value.exit_code == 1
    assert late == 3 or f"squeue --me --name={last.name}" in str(failed.value)
    by_name = [f"--name={last.name}", f"--user={sweep.data['user']}"]
    assert cancelled(answers) == [*([ids] if ids else []), by_name]


def test_a_refusal_is_one(
    trial: TrialConfig, workspace: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (fakes.folder / "late").write_text("2")
    (fakes.folder / "late.err").write_text("sbatch: error: Batch job submission failed: Invalid account\n")
    fakes.add("scancel", stderr="scancel: error: Unable to contact slurm controller\n", code=1)
    with run.recorded() as answers, pytest.raises(Refused, match="Invalid account"):
        submit(trial, monkeypatch, workspace / "sweep")
    assert cancelled(answers)[0] == ["41"]
    assert "note: not cancelled: scancel 41: Unable to contact" in capsys.readouterr().err


def test_jobs_of_another_cluster_are_cancelled_there(
    trial: TrialConfig, workspace: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This cluster has other jobs by the same numbers."""
    (fakes.folder / "on").write_text(";far")
    (fakes.folder / "late").write_text("3")
    far = changed(trial, {"cluster.sbatch": {"clusters": "far,away"}})
    with run.recorded() as answers, pytest.raises(SubmissionFailed):
        submit(far, monkeypatch, workspace / "sweep")
    sweep = Sweep.load(workspace / "sweep")
    assert [job.cluster for job in sweep.submitted()] == ["far", "far", "far,away"]
    by_id, by_name = cancelled(answers)
    assert by_id == ["--clusters=far", "41", "42"]
    assert by_name[:2] == ["--clusters=far,away", f"--name={sweep.submitted()[-1].name}"]


# -- what stages ask for -----------------------------------------------------------------------------------------------


def lines(trial: TrialConfig, folder: Path, **keys: Any) -> list[str]:
    """The #SBATCH lines of a stage of this trial's pipeline."""
    config = changed(trial, {f"cluster.{key}": value for key, value in keys.items()})
    sweep = Sweep.create(folder, command=[], experiment={"name": "x"}, trials=[([], config.plain)])
    made = stages.directives(Chain(sweep, config.cluster, site()).cluster, "name", "out", mem_gb=4)
    return [line.removeprefix("#SBATCH --") for line in made]


def test_a_stage_asks_for_what_its_partition_has(trial: TrialConfig, workspace: Path) -> None:
    of_trials = {"partition": "main", "time": 1440, "constraint": "h100", "reservation": "dpo"}
    made = lines(trial, workspace / "a", **of_trials, stages_partition="short")
    assert {"partition=short", "time=5"} <= set(made)
    assert not [line for line in made if line.startswith(("constraint", "reservation"))]
    same = {"partition=main", "time=1440", "constraint=h100", "reservation=dpo"}
    assert same <= set(lines(trial, workspace / "b", **of_trials))
    assert same <= set(lines(trial, workspace / "c", **of_trials, stages_partition="main"))
    assert "time=2" in lines(trial, workspace / "d", time=2, stages_partition="short")
    assert "time=1440" in lines(trial, workspace / "e", time=1440, stages_partition="main,short"), "one that fits"


def test_an_evaluation_in_a_partition_of_its_own(trial: TrialConfig) -> None:
    base = {"cluster.constraint": "h100", "cluster.reservation": "dpo", "cluster.partition": "main"}
    for partition, kept in ((None, ("h100", "dpo")), ("main", ("h100", "dpo")), ("wide", (None, None))):
        made = evaluation.own_shape(changed(trial, {**base, "evaluation.slurm.partition": partition}))
        assert (made.constraint, made.reservation) == kept
    named = changed(trial, {**base, "evaluation.slurm.partition": "wide", "evaluation.slurm.constraint": "a100"})
    assert evaluation.own_shape(named).constraint == "a100"


@pytest.mark.parametrize(
    ("keys", "mem_gb", "said"),
    [
        ({"stages_partition": "dead"}, 30, "cluster.stages_partition=dead: is DOWN"),
        ({"stages_partition": "nope"}, 30, "cluster.stages_partition=nope: no such partition; there are: dead, main"),
        (
            {"stages_partition": "wide"},
            30,
            "cluster.account=research: for the stages: partition wide does not admit it",
        ),
        ({}, 100, "cluster.stages_partition=null: convert_checkpoint asks for 100 GB: 0 nodes of partition main have"),
        (
            {"stages_partition": "short"},
            100,
            "cluster.stages_partition=short: convert_checkpoint asks for 100 GB: 0 nodes of partition short",
        ),
        ({"sbatch": {"clusters": "far"}, "stages_partition": "dead"}, 100, None),
    ],
)
def test_stages_that_this_cluster_never_runs(
    trial: TrialConfig, keys: dict[str, Any], mem_gb: float, said: str | None
) -> None:
    config = changed(trial, {f"cluster.{key}": value for key, value in keys.items()})
    where = site()
    where.cluster.settings["SelectTypeParameters"] = "CR_CORE_MEMORY"
    found = [str(finding) for finding in stage_shape.findings(where, config, {"convert_checkpoint": mem_gb})]
    assert [one[: len(said or "")] for one in found] == [said] * bool(said), found
    assert stage_shape.findings(where, trial, {"convert_checkpoint": 30, "report": 2}) == []


def test_they_are_refused_before_anything_is_written(
    trial: TrialConfig, workspace: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = changed(trial, {"cluster.stages_partition": "dead"})
    with pytest.raises(Refused, match="cluster.stages_partition=dead: is DOWN"):
        submit(dead, monkeypatch, workspace / "sweep")
    assert not (workspace / "sweep").exists() and not (fakes.folder / "calls").exists()


def test_a_slurm_that_does_not_answer_is_told_once(trial: TrialConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> Any:
        raise client.SlurmError(run.Answer(("scontrol",), 1, "", "Unable to contact slurm controller", 0.0))

    monkeypatch.setattr(client, "cluster", silent)
    assert stage_shape.findings(cluster_limits.Site(), trial, {"report": 2}) == []
