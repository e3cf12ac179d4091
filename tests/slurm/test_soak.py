"""The soak of tests/slurm/soak.py, whose last figures are in docs/soak.md."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.slurm.desk import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.nemo, pytest.mark.slow]


def test_nothing_is_lost_in_a_soak(slurm_installed: None) -> None:
    """SOAK_MINUTES and SOAK_TRIALS make it shorter."""
    minutes, trials = os.environ.get("SOAK_MINUTES", "20"), os.environ.get("SOAK_TRIALS", "20")
    command = [sys.executable, "-m", "tests.slurm.soak", "--minutes", minutes, "--trials", trials, "--steps", "20"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
