"""starts.jsonl, and who owns a trial."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from launcher.sweep import bad_nodes, starts
from launcher.sweep.starts import Start

FIRST = Start(name="9.0", chain="8_1", nodes="node1", began=100.0, first_step=0)


def test_starts_and_ends(tmp_path: Path) -> None:
    assert starts.read(tmp_path) == []
    starts.began(tmp_path, FIRST)
    (one,) = starts.read(tmp_path)
    assert one == FIRST and not one.progress
    starts.ended(tmp_path, "9.0", "timeout", "reached its time limit", 40, "requeued")
    starts.began(tmp_path, Start(name="9.1", chain="8_1", nodes="node2", began=200.0, first_step=40))
    one, two = starts.read(tmp_path)
    assert (one.kind, one.last_step, one.then, one.progress) == ("timeout", 40, "requeued", True)
    assert (two.name, two.kind) == ("9.1", None)


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path: Path) -> None:
    starts.began(tmp_path, FIRST)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"name": "9.0", "kin')
    starts.ended(tmp_path, "9.0", "done", "", 3)
    (one,) = starts.read(tmp_path)
    assert one.kind == "done"


def test_a_full_disk_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    starts.ended(tmp_path, "9.0", "done", "", 3)
    assert starts.read(tmp_path) == []


def test_the_owner(tmp_path: Path) -> None:
    assert starts.owner(tmp_path) == ""
    starts.take_over(tmp_path, "9.0")
    starts.take_over(tmp_path, "9.1")
    assert starts.owner(tmp_path) == "9.1"
    assert os.listdir(tmp_path / "log") == ["current"]


def test_bad_nodes_are_a_clusters_own(tmp_path: Path) -> None:
    bad_nodes.add(tmp_path, "alps", "nid1", "GPU 3 is gone", 2)
    bad_nodes.add(tmp_path, "eos", "nid1", "its disk is full", 0)
    (one,) = bad_nodes.read(tmp_path, "alps")
    assert (one.name, one.why, one.trial) == ("nid1", "GPU 3 is gone", 2)
    assert len(bad_nodes.read(tmp_path)) == 2
    bad_nodes.remove(tmp_path, one)
    assert bad_nodes.read(tmp_path, "alps") == []
