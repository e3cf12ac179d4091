"""The light install works with the newest Python it allows, which a Debian root has and this machine may not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.roots import build
from tests.roots.enter import ROOT, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root to build a Debian root"),
]
PYTHON = "3.14"


def test_the_newest_python_composes_and_checks_a_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    packages = tmp_path / "packages"
    install = [sys.executable, "requirements/uv_install.py", "--target", packages, "--python-version", PYTHON]
    subprocess.run([*install, "--constraint", "requirements/lock.txt", "."], cwd=ROOT, check=True)
    root = build.build("sid", print)
    script = f"""
    export PYTHONPATH={packages} PYTHONSAFEPATH=1
    python{PYTHON} -c 'import importlib.util as u; assert u.find_spec("torch") is None'
    python{PYTHON} -m launcher --help
    python{PYTHON} -m launcher sweep --help
    python{PYTHON} -m launcher sweep --hydra-help
    python{PYTHON} -m launcher sweep --cfg job cluster=local model=tiny
    python{PYTHON} -m launcher sweep -m cluster=local model=tiny model.dpo.ref_policy_kl_penalty=0.1,-1 || test $? = 2
    python{PYTHON} -m launcher status || test $? = 2
    """
    status = run(root, ["bash", "-ec", f"cd /tmp; {script}"], [packages])
    printed = capfd.readouterr()
    assert status == 0, printed.err
    assert "Traceback" not in printed.out + printed.err
    assert "--shell-completion" in printed.out, "Hydra's own options are listed"
    assert "ref_policy_kl_penalty: 0.1" in printed.out, "a config is composed"
    assert "ref_policy_kl_penalty" in printed.err and "-1" in printed.err, "a wrong value is refused with its key"
