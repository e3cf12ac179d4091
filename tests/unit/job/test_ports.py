"""Ports of trials on one machine: each has its own, and files of others cannot stand in the way."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.job import ports

FEW = range(31200, 31204)


@pytest.fixture
def obstacles() -> Iterator[None]:
    """What once blocked a trial: a FIFO, a dangling link and a stale file where locks lay."""
    places = [Path(f"/tmp/launcher-port-{port}.lock") for port in FEW[:3]]
    os.mkfifo(places[0])
    places[1].symlink_to("/nowhere/target")
    places[2].touch(0o444)
    try:
        yield
    finally:
        for place in places:
            place.unlink()


def test_trials_have_ports_of_their_own_whatever_lies_in_tmp(obstacles: None) -> None:
    with contextlib.ExitStack() as held:
        claimed = []
        for _ in FEW:
            port, lock = ports.claim(ports=FEW)
            held.enter_context(lock)
            claimed.append(port)
        assert sorted(claimed) == list(FEW)
        with pytest.raises(OSError, match="every port from 31200 to 31203"):
            ports.claim(ports=FEW)
    port, lock = ports.claim(number=2, ports=FEW)
    lock.close()
    assert port == FEW[2], "a lock ends with its trial; the number is where the search starts"


def test_a_port_that_another_program_listens_on_is_left_out() -> None:
    with socket.create_server(("", FEW[0])):
        port, lock = ports.claim(ports=FEW)
        lock.close()
    assert port == FEW[1]
