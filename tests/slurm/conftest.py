"""A real Slurm for the tests of this folder.

LAUNCHER_TEST_SLURM says which:
    (unset)    one of our own, started once for all tests; its packages are installed if they may be (root and apt)
    existing   the one this machine belongs to; tests that break things are skipped
    off        none: all of them are skipped
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import faults
from tests.slurm.cases import ROW, case, references  # noqa: F401
from tests.slurm.cluster import Cluster
from tests.slurm.desk import Desk
from tests.slurm.existing import Existing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", "") == "call"]  # deselected tests have no report
    recorded = [pair for report in calls for pair in report.user_properties]
    if rows := [faults.Row(**row) for name, row in recorded if name == ROW]:
        terminalreporter.write_sep("=", "what faults cost a trial")
        terminalreporter.write_line(faults.text(rows))


@pytest.fixture(scope="session")
def slurm_installed(request: pytest.FixtureRequest) -> None:
    """Slurm's daemons are on this machine, or the test is skipped with the reason."""
    wish = os.environ.get("LAUNCHER_TEST_SLURM", "")
    if wish not in ("", "existing", "off"):
        raise pytest.UsageError(f"LAUNCHER_TEST_SLURM={wish}: `existing`, `off` or unset")
    if wish:
        pytest.skip(f"needs a Slurm of its own to break, and LAUNCHER_TEST_SLURM={wish}")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        done = subprocess.run([HERE / "install.sh"], stderr=subprocess.PIPE, text=True)  # half a minute: let it be seen
    if done.returncode:
        pytest.skip(f"no Slurm here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def own_cluster(slurm_installed: None) -> Iterator[Cluster]:
    """A cluster that a test may break, if it mends it: 6 nodes, 8 fake GPUs each."""
    with Cluster(nodes=6) as started:
        yield started


@pytest.fixture(scope="session")
def any_cluster(request: pytest.FixtureRequest) -> Existing:
    wish = os.environ.get("LAUNCHER_TEST_SLURM", "")
    if wish == "off":
        pytest.skip("LAUNCHER_TEST_SLURM=off")
    if wish == "existing":
        there = Existing()
        answer = there.run("scontrol", "ping", check=False)
        if answer.returncode:
            pytest.skip(
                f"LAUNCHER_TEST_SLURM=existing, but no Slurm answers: {(answer.stderr + answer.stdout).strip()}"
            )
        return there
    found: Existing = request.getfixturevalue("own_cluster")
    return found


@pytest.fixture
def cluster(any_cluster: Existing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Existing]:
    """A cluster, ours or an existing one, that the Slurm commands of this process find. Ours is emptied afterwards."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "SQUEUE_")) and any_cluster.own]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        if name in any_cluster.env:
            monkeypatch.setenv(name, any_cluster.env[name])
    yield any_cluster
    if any_cluster.own:
        any_cluster.cancel_all()


@pytest.fixture
def desk(own_cluster: Cluster, cluster: Existing, tmp_path: Path) -> Desk:
    """A folder to submit from, on our own cluster."""
    made = Desk(own_cluster, tmp_path / "desk")
    made.set_up()
    return made
