"""The mission's command in a real Apptainer, and in a runtime that does what pyxis and enroot document.

Two trials of two nodes each train tiny in an image like NVIDIA's (`image`), one of them is requeued once, and both come
to a result.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.sweep import starts
from launcher.sweep.folder import Sweep
from tests.containers.conftest import HERE, ROOT, User, rows
from tests.slurm.daemon import wait_until

BETA = "model.dpo.ref_policy_kl_penalty"
PATIENCE_S = 900  # four ranks import NeMo on what may be two cores
MANNERS = {
    "slurm_apptainer": "sets PYTHONPATH and a variable of the job's; read-only, no home, another user's",
    "slurm_pyxis": "the same, and its variables win over the job's; /tmp is empty and of its own",
}
STEPS = 60  # too many to be made between two looks at a trial
WORDS = (
    "model=tiny", "data=sample", f"paths.models={ROOT}/models", f"paths.data={ROOT}/data",
    "trainer.precision=32", "model.global_batch_size=32", "trainer.num_nodes=2", "trainer.devices=1",
    "trainer.dpo.max_epochs=8", f"trainer.dpo.max_steps={STEPS}", "trainer.dpo.val_check_interval=10",
    "trainer.dpo.save_interval=10", "cluster.gpus_per_node=null", "cluster.mem_gb=3", "cluster.time=30",
    "cluster.environment.LAUNCHER_TEST_FROM=the sweep",
)  # fmt: skip


def runtime(name: str, user: User) -> None:
    """Makes a container runtime available to the user's commands and jobs."""
    if name == "slurm_pyxis":
        srun = shutil.which("srun", path=user.cluster.env["PATH"])
        folder = user.folder.parent / "bin"
        folder.mkdir()
        shutil.copy(HERE / "pyxis_srun.sh", folder / "pyxis_srun.sh")
        (folder / "srun").write_text(f'#!/bin/bash\nREAL_SRUN={srun} exec {folder}/pyxis_srun.sh "$@"\n')
        (folder / "srun").chmod(0o755)
        user.path = str(folder)
    else:
        assert shutil.which("apptainer"), "the root has no Apptainer"


def rank_environments(sweep: Path) -> list[dict[str, str]]:
    """The variables that the ranks' Python processes were started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            lines = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"python") and any(os.fsencode(sweep) in word for word in words):
            found.append(dict(os.fsdecode(line).split("=", 1) for line in lines if b"=" in line))
    return [env for env in found if "SLURM_PROCID" in env]


def steps(trial: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl about training steps."""
    path = trial / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "train/loss" in line]


def wait_for(what: Callable[[], bool], user: User, sweep: Path) -> None:
    """Waits as long as jobs are there; else the assertion shows the trials' logs."""
    ended = [False]

    def done() -> bool:
        ended[0] = not user.run("squeue", "-h", "-r", "--me").stdout.strip()
        return what() or ended[0]

    wait_until(done, PATIENCE_S, poll=1)
    logs = [log for log in sorted(sweep.rglob("*.out")) if log.is_file()]
    assert what(), "\n".join(f"== {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


@pytest.mark.parametrize("group", ["slurm_apptainer", "slurm_pyxis"])
def test_two_trials_of_two_nodes_one_requeued(group: str, user: User, image: Path) -> None:
    runtime(group, user)
    folder = user.folder / "sweep"
    words = [f"{BETA}=0.1,0.5", f"cluster={group}", f"cluster.container.image={image}", f"hydra.sweep.dir={folder}"]
    began = time.time()
    done = user.run(sys.executable, str(ROOT / "launcher/main.py"), "-m", *words, *WORDS)
    assert done.returncode == 0, done.stderr + done.stdout

    # Not for both: on a busy machine the one can be done before the other has a step.
    wait_for(lambda: bool(steps(folder / "0")), user, folder)
    first = steps(folder / "0")[0]["time"] - began
    environments = rank_environments(folder)
    assert environments, "no rank was seen"
    for env in environments:
        path = env["PYTHONPATH"].split(":")
        assert path[0] == f"{folder}/code/0/launcher.zip" and path[-2:] == ["/opt/NeMo", "/opt/megatron-lm"]
        assert env["LAUNCHER_TEST_FROM"] == "the sweep"
    array = Sweep.load(folder).submitted()[0].id
    assert user.run("scancel", "--signal=USR2", f"{array}_0").returncode == 0

    wait_for(lambda: all(trial.result() for trial in Sweep.load(folder).trials), user, folder)

    def states() -> list[str]:
        return user.run("sacct", "-n", "-X", "-D", "-P", "-j", f"{array}_0", "-o", "State").stdout.split()

    # the job ends after the result is there, and accounting lags behind
    assert wait_until(lambda: states() == ["REQUEUED", "COMPLETED"], 60, poll=1), states()
    assert [line["step"] for line in steps(folder / "0")][-1] == STEPS
    rows.append(f"| {group} | {MANNERS[group]} | both trials done, the requeued one at step {STEPS} | {first:.0f} |")


@pytest.mark.parametrize(
    ("group", "word", "reason", "most"),
    [
        ("slurm_apptainer", "cluster.container.image=/images/none.sif", "could not open image /images/none.sif", 2),
        ("slurm_apptainer", "cluster.python=python9", "exec: python9: not found", 1),
        ("slurm_pyxis", "cluster.container.image=/images/none.sqsh", "No such file or directory: /images/none.sqsh", 2),
        ("slurm_pyxis", "cluster.python=python9", "exec: python9: not found", 1),
    ],
)
def test_a_container_that_cannot_start(group: str, word: str, reason: str, most: int, user: User, image: Path) -> None:
    """`status` has the runtime's own words. A mistake is not made again, where it is known to be one."""
    runtime(group, user)
    folder = user.folder / "sweep"
    words = [f"{BETA}=0.1", f"cluster={group}", f"cluster.container.image={image}", f"hydra.sweep.dir={folder}", word]
    done = user.run(sys.executable, str(ROOT / "launcher/main.py"), "-m", *words, *WORDS)
    assert done.returncode == 0, done.stderr + done.stdout
    assert wait_until(lambda: not user.run("squeue", "-h", "-r", "--me").stdout.strip(), 300, poll=1)
    status = user.run(sys.executable, "-m", "launcher", "status", str(folder)).stdout
    assert "0 failed" in status and reason in " ".join(status.split()), status
    assert len(starts.read(folder / "0")) <= most
