"""The branch that a GPU with pip packages takes (no Apex, no Transformer Engine), with the CPU computing behind it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration import played_gpu
from tests.integration.conftest import REPOSITORY, Trial

pytest.importorskip("nemo_aligner")
pytestmark = [pytest.mark.nemo, pytest.mark.slow]

#: By default lengths are rounded up on a GPU and not on a CPU.
KEYS = {"compute__length_multiple": 16, "evaluation__kl_pairs": 4, "evaluation__samples": 1}


def played(folder) -> Trial:
    (folder / "log").mkdir()
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / "log" / "0_0_log.out").open("w") as log:
        command = [sys.executable, "-m", "tests.integration.played_gpu", str(folder)]
        code = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=600).returncode
    return Trial(folder, [code])


@pytest.mark.parametrize("precision", ["auto", "32"])
def test_a_gpu_with_pip_packages_trains_as_the_cpu_does(train, new_trial, precision):
    keys = {**KEYS, "trainer__precision": precision}
    trial = played(new_trial("gpu", **keys))
    assert trial.exit_codes == [0], trial.said()
    said = (trial.folder / "log" / "0_0_log.out").read_text()
    assert "process group: nccl" in said and "stand-ins  for apex, transformer_engine, missing here" in said
    assert trial.result["device"] == f"gpu, {played_gpu.NAME}"
    assert trial.result["precision"] == ("bf16" if precision == "auto" else "32")
    cpu = train(new_trial("cpu", **{**keys, "trainer__precision": trial.result["precision"]}))
    for key in ("train/loss", "val/loss"):
        assert trial.values(key) == pytest.approx(cpu.values(key), abs=1e-6), key
    assert trial.result["evaluation"]["per_pair"] == cpu.result["evaluation"]["per_pair"]


def test_a_played_gpu_goes_on_from_its_checkpoint(new_trial):
    """A second start loads random states and optimizer states to the device, and only evaluates."""
    folder = new_trial("gpu", **KEYS, trainer__dpo__max_steps=3)
    first = played(folder)
    assert first.exit_codes == [0], first.said()
    losses = first.values("train/loss")
    (folder / "result.json").unlink()
    (folder / "log" / "0_0_log.out").rename(folder / "first.out")
    (folder / "log").rmdir()
    again = played(folder)
    assert again.exit_codes == [0], again.said()
    assert again.values("train/loss") == losses and again.result["steps"] == 3
