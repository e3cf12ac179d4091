"""The functions that the scripts in sbatch/ share, called by bash with stand-ins for srun and Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FUNCTIONS = Path(__file__).resolve().parents[3] / "sbatch" / "functions.sh"
#: Two of eight trials of a node, as sweep.sbatch trains them; srun and Python on the node note what they are given.
BESIDE = f"""
container= srun_args=() python=(python) python_on_node=none per_element=8 ranks_per_node=1 sweep=$PWD
source {FUNCTIONS}
srun() {{ echo "srun $*" >>called; }}
on_node() {{ echo "on_node $*" >>called; }}
started=($PWD/0 $PWD/1) start=7.0
train
"""


@pytest.mark.parametrize(("given", "each"), [("8", "1"), ("16", "2"), ("a100:8", "a100:1"), ("", None), (None, None)])
def test_each_trial_of_a_node_gets_its_share_of_the_gpus(given: str | None, each: str | None, tmp_path: Path) -> None:
    """Slurm repeats what was asked of sbatch: a type stands before the number."""
    for number in range(2):
        (tmp_path / str(number) / "log").mkdir(parents=True)
    env = {"PATH": os.environ["PATH"], "SLURM_CPUS_ON_NODE": "64"}
    env |= {} if given is None else {"SLURM_GPUS_PER_NODE": given}
    done = subprocess.run(["/bin/bash", "-c", BESIDE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    called = (tmp_path / "called").read_text().splitlines()
    steps = [line.split() for line in called if line.startswith("srun ")]
    asked = [[word.partition("=")[2] for word in step if word.startswith("--gpus-per-node=")] for step in steps]
    assert asked == [[each] if each else []] * 2
    ended = [line for line in called if line.startswith("on_node -m launcher.job.begin_end end ")]
    assert sorted(ended) == [f"on_node -m launcher.job.begin_end end {tmp_path}/{number} 0" for number in range(2)]
