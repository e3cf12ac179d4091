"""The plain scripts in sbatch/, submitted as they are, and the pipeline, on a real cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.status import states
from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.daemon import wait_until
from tests.slurm.desk import BETA, ROOT, Desk
from tests.slurm.sweeps import STAND_IN

pytestmark = pytest.mark.slurm
SBATCH = ROOT / "sbatch"


def plain(desk: Desk, name: str, *words: str, options: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
    """Submit a script as it is, from the desk, and wait: (exit code, what it printed)."""
    given = {**desk.cluster.env, "LAUNCHER": str(ROOT), "PYTHON": sys.executable, **env}
    output = desk.folder / f"{name}.txt"
    command = ["sbatch", "--wait", f"--output={output}", "--mem=2G", *options, str(SBATCH / f"{name}.sbatch"), *words]
    done = subprocess.run(command, cwd=desk.folder, env=given, capture_output=True, text=True, timeout=180)
    return done.returncode, output.read_text() if output.exists() else done.stderr


@pytest.fixture
def python(desk: Desk) -> str:
    """Python whose ranks are stand-ins for training."""
    script = desk.folder / "python"
    standin = Path(__file__).with_name("standin.py")
    script.write_text(
        f'#!/bin/bash\ncase "$*" in *slurm_rank*) set -- "{standin}" "$@" ;; esac\nexec "{sys.executable}" "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def test_prepare_data(desk: Desk) -> None:
    code, said = plain(desk, "prepare_data", "data=sample", "--out", "made")
    assert code == 0, said
    assert (desk.folder / "made" / "dataset.json").exists() and "288" in said
    code, said = plain(desk, "prepare_data", "nowhere.jsonl")
    assert code == 2 and "SOURCE=nowhere.jsonl" in said


def test_the_plain_array(desk: Desk, python: str) -> None:
    """Three betas: one folder for all three elements, whichever wrote it, and the launcher's commands know it."""
    runs = desk.folder / "a $(b)"
    options = ("--array=0-2", "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    words = ("model=tiny", "data=sample")
    env = {"BETAS": "0.05 0.1 0.5", "RUNS": str(runs), "PYTHON": python}
    code, said = plain(desk, "sweep", *words, options=options, **env)
    assert code == 0, said
    (folder,) = runs.iterdir()
    sweep = Sweep.load(folder)
    assert [trial.beta for trial in sweep.trials] == [0.05, 0.1, 0.5]
    assert folder.name == f"sweep-{sweep.jobs[0].id}"
    assert all(trial.result() for trial in sweep.trials)
    assert [len(list((trial.folder / "log").glob("*_log.out"))) for trial in sweep.trials] == [4, 4, 4]
    assert [state.state for state in states.look(sweep).trials] == ["DONE"] * 3
    seen = [json.loads((trial.folder / "rank0.json").read_text()) for trial in sweep.trials]
    assert {rank["pythonpath"].split(":")[0] for rank in seen} == {f"{folder}/code/0/launcher.zip"}
    env["BETAS"] = "0.05 0 0.5"
    code, said = plain(desk, "sweep", *words, options=options, **env)
    assert code == 2 and "ref_policy_kl_penalty=0: must be" in said


@pytest.mark.parametrize("how", ["--requeue", "--no-requeue"])
def test_the_plain_array_goes_on(desk: Desk, how: str) -> None:
    """Warned and requeued, or continued by another job, which has what stood on sbatch's command line."""
    stand_in = desk.folder / "stand-in"
    stand_in.write_text(STAND_IN)
    python = desk.folder / "python"
    rank = f'*slurm_rank*) set -- "{stand_in}" "$@" ;;'
    tell = 'for n in 0 1; do echo "$BEHAVE" >"$SWEEP/$n/behave.json"; done'
    make = f'*main.py*) "{sys.executable}" "$@" && {tell}; exit ;;'
    python.write_text(f'#!/bin/bash\ncase "$*" in {make} {rank} esac\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    options = ("--array=0-1", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--mem=2G", how)
    env = {"BETAS": "0.05 0.1", "PYTHON": str(python), "LAUNCHER": str(ROOT)}
    env["BEHAVE"] = '{"starts": [{"all": "train"}, {"all": "done"}]}'
    command = ["sbatch", "--parsable", *options, str(SBATCH / "sweep.sbatch"), "model=tiny", "data=sample"]
    given = {**desk.cluster.env, **env}
    done = subprocess.run(command, cwd=desk.folder, env=given, capture_output=True, text=True, timeout=60)
    folder = desk.folder / "runs" / f"sweep-{done.stdout.strip()}"

    def trains(number: int) -> bool:
        logs = [log for log in folder.glob(f"{number}/log/*_log.out") if "does train" in log.read_text()]
        return len(logs) == 2  # before that one of the ranks has no ear for a signal yet

    assert wait_until(lambda: trains(0) and trains(1), 60)
    desk.cluster.run("scancel", "--signal=TERM", f"{folder.name.removeprefix('sweep-')}_1")
    assert wait_until(lambda: (folder / "1" / "result.json").exists(), 60), done.stderr
    sweep = Sweep.load(folder)
    first, last = starts.read(sweep.trials[1].folder)
    assert (first.kind, last.first_step) == ("asked", 10)
    assert (first.name.partition(".")[0] == last.name.partition(".")[0]) == (how == "--requeue")
    assert len(list(folder.glob("1/log/*_log.out"))) == 4, "two ranks, twice"
    assert [state.state for state in states.look(sweep).trials] == ["RUNNING", "DONE"]


def test_the_plain_run_prepares_its_data(desk: Desk, python: str) -> None:
    shutil.rmtree(desk.folder / "data")
    options = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2")
    code, said = plain(desk, "dpo", "model=tiny", "data=sample", options=options, PYTHON=python)
    assert code == 0, said
    (folder,) = (desk.folder / "runs").iterdir()
    assert Sweep.load(folder).trials[0].result()
    assert (desk.folder / "data" / "sample" / "dataset.json").exists()


def launcher(desk: Desk, *words: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import argparse, importlib, sys; m = importlib.import_module('launcher.commands.' + sys.argv[1]);"
        "p = argparse.ArgumentParser(); m.add(p); sys.exit(m.run(p.parse_args(sys.argv[2:])))"
    )
    env = {**desk.cluster.env, **desk.env, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=desk.folder, env=env, capture_output=True, text=True, timeout=180)


SMALL = (
    "model=tiny", "data=sample", "cluster.gpus_per_node=null", "cluster.time=10", "cluster.mem_gb=4",
    "hydra.sweep.dir=sweep", f"{BETA}=0.1,0.5",
)  # fmt: skip


def jobs(desk: Desk) -> dict[str, int]:
    """The jobs of the desk's sweep, by what they are, in the order in which they were submitted."""
    found = desk.sweep().submitted()
    return {"sweep" if job.kind == "slurm" else Path(job.script).stem: int(job.id) for job in found}


def ended(desk: Desk, job: int) -> set[str]:
    """Slurm's words for a job, or for all elements of an array, once it has ended."""
    words: set[str] = set()

    def known() -> bool:
        said = desk.cluster.run("sacct", "-X", "-n", "-P", "-j", str(job), "-o", "State").stdout.split("\n")
        words.clear()
        words.update(line.split(" ")[0] for line in said if line)
        return bool(words) and not words & {"PENDING", "RUNNING", "COMPLETING"}

    assert wait_until(known, 30, poll=0.3), words
    return words


def test_render_is_what_is_submitted(desk: Desk) -> None:
    shown = launcher(desk, "render", "sweep", *SMALL)
    assert shown.returncode == 0, shown.stderr
    assert not (desk.folder / "sweep").exists()
    done = desk.bare("-m", "cluster=slurm", *SMALL, "+cluster.sbatch.hold=true")
    assert done.returncode == 0, done.stderr
    desk.cluster.cancel_all()
    submitted = (desk.sweep_folder / "slurm" / "0.sbatch").read_text().replace("#SBATCH --hold\n", "")
    job = f"dpo-{desk.sweep().data['id']}"
    assert [line for line in submitted.splitlines() if line not in shown.stdout] == [f"#SBATCH --job-name={job}"]
    too_long = launcher(desk, "render", "sweep", *SMALL, "cluster.partition=short", "hydra.sweep.dir=other")
    assert (too_long.returncode, too_long.stdout) == (2, "") and "cluster.time=10" in too_long.stderr


def test_a_failing_stage_cancels_what_is_behind_it(desk: Desk) -> None:
    shutil.rmtree(desk.folder / "data")
    (desk.folder / "models" / "tiny.nemo").unlink()
    (desk.folder / "broken").mkdir()
    (desk.folder / "broken" / "config.json").write_text("{\n")
    done = launcher(desk, "pipeline", "--checkpoint", "broken", *SMALL)
    assert done.returncode == 0, done.stderr
    chain = jobs(desk)
    assert list(chain) == ["convert_checkpoint", "prepare_data", "sweep", "report"]
    assert all(str(job) in done.stdout for job in chain.values())
    desk.wait_ended()
    assert [ended(desk, job) for job in chain.values()] == [{"FAILED"}, {"CANCELLED"}, {"CANCELLED"}, {"CANCELLED"}]
    assert not (desk.folder / "data" / "sample").exists()


def test_a_pipeline_that_is_refused_leaves_nothing(desk: Desk) -> None:
    shutil.rmtree(desk.folder / "data")
    before = desk.cluster.queue()
    done = launcher(desk, "pipeline", *SMALL, "cluster.partition=nowhere", "trainer.devices=3")
    assert done.returncode == 2 and "no such partition" in done.stderr and "global_batch_size" in done.stderr
    assert "dataset" not in done.stderr and "train.jsonl" not in done.stderr
    assert desk.cluster.queue() == before and not (desk.folder / "sweep").exists()


@pytest.mark.nemo
@pytest.mark.slow
def test_the_pipeline(desk: Desk, own_cluster: Cluster) -> None:
    """Conversion, data, two trials of real training, report; then once more, with data and model there."""
    shutil.rmtree(desk.folder / "data")
    (desk.folder / "models" / "tiny.nemo").unlink()
    desk.env |= {"OMP_NUM_THREADS": "1"}
    steps = ("trainer.dpo.max_steps=2", "trainer.dpo.val_check_interval=2", "trainer.dpo.save_interval=2")
    fast = ("model.optim.sched.warmup_steps=1", "cluster.array_parallelism=1")
    done = launcher(desk, "pipeline", *SMALL, *steps, *fast)
    assert done.returncode == 0, done.stderr
    chain = jobs(desk)
    desk.wait_ended(timeout=900)
    said = "".join(path.read_text() for path in sorted((desk.sweep_folder / "slurm").glob("*.out")))
    assert {name: ended(desk, job) for name, job in chain.items()} == dict.fromkeys(chain, {"COMPLETED"}), said
    assert all(trial.result() for trial in desk.sweep().trials)
    report = (desk.sweep_folder / "report" / "report.csv").read_text()
    assert "0.1," in report and "0.5," in report

    again = launcher(desk, "pipeline", *SMALL, *steps, *fast, "hydra.sweep.dir=again")
    desk.cluster.cancel_all()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped") == 2
    stages = [Path(job.script).stem for job in Sweep.load(desk.folder / "again").jobs]
    assert stages == ["0", "report"], os.listdir(desk.folder / "again" / "slurm")
