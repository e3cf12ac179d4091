"""Fixtures of the fault tests: a sweep to which a test does something, and the run to which nothing happened."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from launcher.sweep.folder import Sweep
from tests.slurm import faults, inject
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.existing import Existing
from tests.slurm.faults import Result, Row
from tests.slurm.victim import WORDS, Sweeping

ROW = "fault"
"""The property of a test's report that holds a row of the table at the end of a test run."""
References = Callable[..., Result]


@pytest.fixture(scope="session")
def references(own_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> References:
    """references(*words) -> the result of a trial that ran from start to end; run once for all tests.

    Their folders are under FAULTS_REFERENCE, where that is set, and are taken from there the next time.
    """
    there = os.environ.get("FAULTS_REFERENCE")
    root = Path(there) if there else tmp_path_factory.mktemp("references")
    made: dict[tuple[str, ...], Result] = {}

    def reference(*words: str) -> Result:
        if words not in made:
            name = hashlib.sha256(repr((WORDS, words)).encode()).hexdigest()[:12]
            sweep = Sweeping(Desk(own_cluster, root / name))
            with (root / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # FAULTS_REFERENCE may be shared by several test runs
                if not sweep.folder.exists():
                    sweep.desk.set_up()
                    sweep.submit(*words, "wait=true")
            made[words] = Result.of(Sweep.load(sweep.folder).trials[0])
        return made[words]

    return reference


@dataclass
class Case:
    """A test's sweep."""

    sweep: Sweeping
    references: References
    record: Callable[[str, object], None]
    """pytest's record_property: what it gets travels with the test's report, also from another process."""
    words: tuple[str, ...] = ()

    def submit(self, *words: str, trials: tuple[str, ...] = ()) -> None:
        """A trial with WORDS and these, once its uninterrupted twin is there; `trials`: overrides that make several.

        Overrides of `cluster` and of `trials` must not change what is computed.
        """
        self.words = tuple(word for word in words if not word.startswith("cluster."))
        self.references(*self.words)
        self.sweep.submit(*words, *trials)

    def row(self, fault: str, trial: int = 0, note: str = "", seconds: float = 600) -> Row:
        """Wait for the end; the row of the table."""
        look = self.sweep.wait_ended(seconds)
        found = faults.row(fault, self.sweep, look, self.references(*self.words), trial, note)
        self.record(ROW, asdict(found))
        faults.keep(found)
        print(faults.text([found]))
        return found


@pytest.fixture
def case(
    own_cluster: Cluster,
    cluster: Existing,
    references: References,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> Iterator[Case]:
    """A sweep to be submitted and hurt, with a minute of grace for preempted jobs; the cluster is whole afterwards."""
    desk = Desk(own_cluster, tmp_path / "desk")
    desk.set_up()
    own_cluster.sacctmgr("modify", "qos", "normal", "set", "GraceTime=60")
    made = Case(Sweeping(desk), references, record_property)
    try:
        with made.sweep.watched():
            yield made
    finally:
        inject.mend(own_cluster)
        own_cluster.sacctmgr("modify", "qos", "normal", "set", "GraceTime=5")
