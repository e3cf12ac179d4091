"""A sweep beyond MaxArraySize: several arrays, one sweep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.desk import BETA, Desk

pytestmark = pytest.mark.slurm


@pytest.fixture
def small(slurm_installed: None, tmp_path: Path) -> Iterator[Desk]:
    """A desk at a cluster whose arrays have at most three elements."""
    with Cluster(nodes=2, gpus=0, max_array_size=3) as cluster:
        desk = Desk(cluster, tmp_path / "desk")
        desk.set_up()
        yield desk


def test_seven_trials_are_three_arrays_and_one_sweep(small: Desk) -> None:
    betas = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    small.env["STANDIN_FAILS"] = "0.5"
    done = small.main("-m", f"{BETA}={','.join(map(str, betas))}", "cluster.array_parallelism=2", "wait=true")
    arrays = small.arrays()
    assert len(arrays) == 3 and all(arrays)
    assert f"arrays {', '.join(arrays)}: 7 trials" in done.stdout
    assert [job.trials for job in small.sweep().submitted()] == [[0, 1, 2], [3, 4, 5], [6]]
    results = [trial.result() for trial in small.sweep().trials]
    assert [result and result["beta"] for result in results] == [0.1, 0.2, 0.3, 0.4, None, 0.6, 0.7]
    assert done.returncode == 1 and "error: trial 4 (beta 0.5) FAILED" in done.stderr
    states = [sorted(code != "0:0" for _, code in small.accounted(array).values()) for array in arrays]
    assert states == [[False, False, False], [False, False, True], [False]]


def test_a_later_array_that_sbatch_does_not_take(small: Desk) -> None:
    """What was submitted before it is known, and the command says what is missing."""
    second = f"[ -e {small.sweep_folder}/slurm/1.sbatch ]"
    small.wrap("sbatch", f'if {second}; then echo "sbatch: error: full" >&2; exit 1; fi\nexec REAL "$@"\n')
    done = small.main("-m", f"{BETA}=0.1,0.2,0.3,0.4,0.5", "cluster.sbatch.hold=true")
    assert done.returncode == 1
    assert "full; 2 of 5 trials are not known to be submitted" in done.stderr and "Traceback" not in done.stderr
    first, missing = small.arrays()
    assert small.all_arrays() == {first} and missing == ""
