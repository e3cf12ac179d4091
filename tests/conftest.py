"""For all tests: signals mean what they mean on a terminal, and which tests share a process."""

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_HERE = Path(__file__).parent
_GROUPS = {"slurm": "slurm", "integration": "nemo", "benchmarks": "nemo"}
"""Folder -> the group whose tests all run in one process, where pytest-xdist deals them out (`--numprocesses 2`).

The tests on Slurm share one cluster and mostly wait; those with NeMo share its import and use the cores.
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Deal the groups out whole. (pytest-xdist 3.8's own `xdist_group` marks have no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = nodeid.split("/")[1] if "/" in nodeid else ""
            return _GROUPS.get(folder, nodeid)

    return ByGroup(config, log)


# `nohup` and a shell's `&` start a process with these ignored, which every process of the tests would inherit; the
# launcher, rightly, leaves a signal ignored that was.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Hypothesis fails an example that takes 0.2 s, and a generator that is slow: on a busy machine, any.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
