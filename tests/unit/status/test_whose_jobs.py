"""Whether the jobs that Slurm lists are the sweep's: hand-submitted arrays, other clusters, ids that sbatch lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm import client
from launcher.slurm.rows import AccountRow, QueueRow
from launcher.status import states
from tests.unit.status.test_states import ARRAY, make, queued

HOUR = 3600.0


class Slurm:
    """The answers of this machine's Slurm; `asked` notes the commands."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[QueueRow] = []
        self.account: list[AccountRow] = []
        self.asked: list[str] = []
        for name in ("squeue", "sacct", "scancel"):
            monkeypatch.setattr(client, name, getattr(self, name))

    def squeue(self, ids: Sequence[int] | None = None, **how: Any) -> list[QueueRow]:
        self.asked.append("squeue by name" if how.get("name") else "squeue")
        return [row for row in self.queue if ids is None or row.array_id in ids]

    def sacct(self, ids: Sequence[int], **how: Any) -> list[AccountRow]:
        self.asked.append("sacct")
        return [row for row in self.account if row.array_id in ids]

    def scancel(self, names: Sequence[str]) -> None:
        self.asked.append(f"scancel {' '.join(names)}")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


@pytest.mark.parametrize("waited", [0.0, HOUR])
def test_a_hand_submitted_sweep_may_have_waited_in_the_queue(tmp_path: Path, slurm: Slurm, waited: float) -> None:
    """Its first element records the array as it starts, which says nothing about when it was submitted."""
    sweep = make(tmp_path / "s", 2, array=None)
    sweep.record_job("slurm", str(ARRAY), [0, 1], name="dpo")
    slurm.queue = [queued(n, "RUNNING", submitted=time.time() - waited) for n in range(2)]
    assert [state.state for state in states.look(sweep).trials] == ["RUNNING"] * 2
    slurm.queue = [queued(n, "RUNNING", submitted=time.time() + HOUR) for n in range(2)]
    assert "to another job" in states.look(sweep).trials[0].reason, "the id was given again later"
