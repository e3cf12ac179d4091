"""The submitting process is killed (-9): afterwards there is no array, or one that the sweep's folder knows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.findings import Refused
from tests.slurm.daemon import wait_until
from tests.slurm.desk import BETA, Desk

pytestmark = pytest.mark.slurm
MOMENTS = ("the sweep's folder is there", "sbatch is about to submit", "sbatch has submitted")
#: A site's sbatch that takes its time, and tells where it is.
SLOW = """touch "$0.before"; sleep 0.7
REAL "$@"; code=$?
touch "$0.after"; sleep 0.7; touch "$0.end"; exit $code
"""
#: The same with a remark, as submit plugins make: into a pipe whose reader is gone, it would end the script.
TALKING = """touch "$0.before"; sleep 0.7
said=$(REAL "$@"); code=$?
touch "$0.after"; echo "dear user" >&2
echo "$said"; touch "$0.end"; exit $code
"""


def known_and_there(desk: Desk) -> tuple[set[str], set[str]]:
    try:
        known = {array for array in desk.arrays() if array}
    except Refused:  # killed before there was a sweep
        known = set()
    return known, desk.all_arrays()


@pytest.mark.parametrize("sbatch", [SLOW, TALKING], ids=["slow", "talking"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at(desk: Desk, moment: str, sbatch: str) -> None:
    desk.wrap("sbatch", sbatch)
    before = desk.all_arrays()
    wrapper = desk.folder / "bin" / "sbatch"
    marks = (desk.sweep_folder / "sweep.json", Path(f"{wrapper}.before"), Path(f"{wrapper}.after"))
    with desk.start("-m", f"{BETA}=0.1,0.2", "cluster.sbatch.hold=true") as process:
        try:
            assert wait_until(marks[MOMENTS.index(moment)].exists, 60, poll=0.001)
        finally:
            process.kill()
    if moment != MOMENTS[0] or wait_until(marks[1].exists, 2):
        assert wait_until(Path(f"{wrapper}.end").exists, 30), "sbatch died with who called it"
    known, there = known_and_there(desk)
    assert known == there - before
    if moment != MOMENTS[0]:
        assert len(known) == 1
    desk.cluster.cancel_all()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.95, 1.0])
def test_killed_at_any_time(desk: Desk, share: float) -> None:
    """At a share of the time that a submission takes."""
    before = desk.all_arrays()
    began = time.monotonic()
    assert desk.main(f"{BETA}=0.1", "cluster.sbatch.hold=true", f"hydra.sweep.dir={desk.folder}/first").returncode == 0
    taken = time.monotonic() - began
    first = desk.all_arrays() - before
    assert len(first) == 1
    with desk.start("-m", f"{BETA}=0.1,0.2", "cluster.sbatch.hold=true") as process:
        time.sleep(taken * share)
        process.kill()
    time.sleep(0.5)
    known, there = known_and_there(desk)
    assert known == there - before - first
    desk.cluster.cancel_all()
