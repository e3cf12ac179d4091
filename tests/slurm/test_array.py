"""The mission's command on a real cluster, with real training; and what one array is, with stand-ins for training."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from launcher.sweep.folder import Sweep
from tests.slurm.cluster import Cluster
from tests.slurm.desk import BETA, ROOT, Desk

pytestmark = pytest.mark.slurm
LOSSES = ("train/loss", "val/loss", "train/grad_norm", "val/rewards_chosen_mean", "val/rewards_rejected_mean")


def losses(sweep: Sweep, trial: int) -> dict[tuple[int, str], float]:
    """Every figure that training wrote, by (step, name)."""
    lines = sweep.trials[trial].metrics_rows()
    return {(line["step"], name): line[name] for line in lines for name in LOSSES if name in line}


def leaks(folder: Path, *texts: str) -> list[str]:
    """The files below a folder in which one of these texts stands."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if any(text.encode() in path.read_bytes() for text in texts)]


@pytest.mark.nemo
@pytest.mark.slow
def test_the_missions_command(desk: Desk, own_cluster: Cluster) -> None:
    """Three trials, each 2 nodes x 2 ranks of NeMo-Aligner: one array, three results; one of them done again here."""
    tokens = {"HF_TOKEN": secrets.token_hex(16), "WANDB_API_KEY": secrets.token_hex(20)}
    desk.env |= {**tokens, "OMP_NUM_THREADS": "1"}
    folders = (f"paths.models={ROOT}/models", f"paths.data={ROOT}/data")
    real = ("model=tiny", "data=sample", *folders, "cluster.time=15", "cluster.mem_gb=8", "cluster.gpus_per_node=2")
    real += ("trainer.accelerator=cpu",)  # the GPUs of the tests' Slurm are files
    shape = ("trainer.num_nodes=2", "trainer.devices=2")
    done = desk.main("-m", f"{BETA}=0.05,0.1,0.5", *real, *shape, "wait=true", standin=False, timeout=900)
    assert done.returncode == 0, done.stderr
    sweep = desk.sweep()
    (array,) = desk.arrays()
    assert f"array {array}: 3 trials x 2 nodes x 2 ranks" in done.stdout
    assert desk.accounted(array) == dict.fromkeys(range(3), ("COMPLETED", "0:0"))
    results = [trial.result() for trial in sweep.trials]
    assert [result and result["beta"] for result in results] == [0.05, 0.1, 0.5]
    assert [result and result["ranks"] for result in results] == [4, 4, 4]
    finals = {result["final"]["val/loss"] for result in results if result}
    assert len(finals) == 3, "three betas, three losses"
    for trial in sweep.trials:
        assert len(list((trial.folder / "log").glob("*_log.out"))) == 4, "a log of its own for each rank"
    assert leaks(sweep.folder, *tokens.values()) == []

    here = desk.folder / "here"
    local = ("cluster=local", "trainer.devices=4", f"hydra.sweep.dir={here}", "model=tiny", "data=sample")
    again = desk.bare(f"{BETA}=0.1", *local, *folders, timeout=600)
    assert again.returncode == 0, again.stderr
    on_slurm, locally = losses(sweep, 1), losses(Sweep.load(here), 0)
    assert on_slurm.keys() == locally.keys() and len(on_slurm) >= 10
    assert on_slurm == pytest.approx(locally, abs=1e-4)


def test_one_array_of_multi_node_jobs(desk: Desk) -> None:
    """Returns at once with the array's id; every rank runs on the node it should."""
    desk.env["STANDIN_SECONDS"] = "0.5"
    done = desk.main("-m", f"{BETA}=0.05,0.1,0.5", "trainer.num_nodes=2", "trainer.devices=2")
    assert done.returncode == 0, done.stderr
    (array,) = desk.arrays()
    assert not (desk.sweep_folder / "2" / "result.json").exists(), "it waited"
    for command in ("status", "watch", "cancel"):
        assert f"python -m launcher {command} sweep\n" in done.stdout + "\n"
    desk.wait_ended()
    assert desk.accounted(array) == dict.fromkeys(range(3), ("COMPLETED", "0:0"))
    for trial in range(3):
        ranks = desk.ranks(trial)
        assert [rank["ranks"] for rank in ranks] == [4] * 4
        if desk.cluster.own_hosts:
            hosts = [rank["host"] for rank in ranks]
            assert hosts[0] == hosts[1] != hosts[2] == hosts[3]


def test_a_single_trial_is_an_array_of_one(desk: Desk) -> None:
    assert desk.main(f"{BETA}=0.3").returncode == 0
    desk.wait_ended()
    (array,) = desk.arrays()
    assert desk.accounted(array) == {0: ("COMPLETED", "0:0")}


def test_a_failing_trial_among_good_ones(desk: Desk) -> None:
    """Its job is FAILED with a non-zero exit code, the others are done, and the command that waited says so."""
    desk.env["STANDIN_FAILS"] = "0.2"
    done = desk.main("-m", f"{BETA}=0.1,0.2,0.3", "trainer.num_nodes=2", "wait=true")
    assert done.returncode == 1
    assert "error: trial 1 (beta 0.2) FAILED" in done.stderr and "Traceback" not in done.stderr
    (array,) = desk.arrays()
    states = desk.accounted(array)
    assert (states[0], states[2]) == (("COMPLETED", "0:0"), ("COMPLETED", "0:0"))
    assert states[1][0] == "FAILED" and states[1][1] != "0:0"
    assert [trial.result() is not None for trial in desk.sweep().trials] == [True, False, True]
    after = desk.cluster.run("sbatch", "--parsable", f"--dependency=afterok:{array}", "--wrap", "true").stdout.strip()
    said = desk.cluster.run("squeue", "-h", "-j", after, "-o", "%r").stdout.strip()
    assert said in ("Dependency", "DependencyNeverSatisfied"), "afterok took a failed sweep for a good one"


def test_parallelism(desk: Desk) -> None:
    """array_parallelism=1: one trial after the other, though there is room for all."""
    desk.env["STANDIN_SECONDS"] = "0.3"
    assert desk.main("-m", f"{BETA}=0.1,0.2,0.3", "cluster.array_parallelism=1").returncode == 0
    desk.wait_ended()
    times = sorted((rank["began"], rank["ended"]) for number in range(3) for rank in desk.ranks(number))
    assert len(times) == 3
    assert all(ended <= began for (_, ended), (began, _) in zip(times, times[1:], strict=False))


def test_questions_and_permissions(desk: Desk) -> None:
    """At most three questions to Slurm besides one sbatch; the folder is its user's alone."""
    names = ("sbatch", "scontrol", "sinfo", "sacctmgr", "squeue", "sacct", "scancel", "srun")
    records = {name: desk.wrap(name, 'record "$@"\nexec REAL "$@"\n') for name in names}
    assert desk.main("-m", f"{BETA}=range(0.1,1.1,0.1)", "cluster.sbatch.hold=true").returncode == 0
    counted = {name: len(desk.calls(record)) for name, record in records.items()}
    assert counted.pop("sbatch") == 1
    assert sum(counted.values()) <= 3, counted
    assert desk.sweep_folder.stat().st_mode & 0o777 == 0o700
