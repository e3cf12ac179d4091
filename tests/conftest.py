"""For all tests: signals mean what they mean on a terminal, and which tests share a process."""

import signal
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_GROUPS = {"slurm": "slurm", "integration": "nemo", "benchmarks": "nemo"}
"""Folder -> the group whose tests all run in one process, where pytest-xdist deals them out (`--dist loadgroup`).

The tests on Slurm share one cluster and mostly wait; those with NeMo share its import and use the cores.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if group := _GROUPS.get(item.path.relative_to(_HERE).parts[0]):
            item.add_marker(pytest.mark.xdist_group(group))


# `nohup` and a shell's `&` start a process with these ignored, which every process of the tests would inherit; the
# launcher, rightly, leaves a signal ignored that was.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
