"""Stand-ins only where something is missing: nothing in NVIDIA's container, the non-CUDA half on a GPU without.

There is no GPU where these tests run, so a GPU machine is played: torch is told that CUDA answers, and empty packages
take the names of Apex and Transformer Engine. Each case is a fresh interpreter, since torch cannot be un-patched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from launcher.train.nemo_aligner.standins import deferred
from tests.integration.conftest import REPOSITORY

pytest.importorskip("torch")
pytest.importorskip("wrapt")

PACKAGES = {"apex": ("apex", "amp_C"), "transformer_engine": ("transformer_engine",)}

PROBE = """
import json, os, sys
import torch

CUDA = {cuda}
torch.cuda.is_available = lambda: CUDA

def state():
    names = ("zeros", "tensor", "autocast")
    return {{
        "torch": [id(getattr(torch, name)) for name in names] + [id(torch.Tensor.cuda), id(torch.nn.Parameter.type)],
        "cuda": [id(value) for name, value in sorted(vars(torch.cuda).items())],
        "environment": dict(os.environ),
        "finders": [repr(finder) for finder in sys.meta_path],
        "stand-in modules": sorted(name for name, m in sys.modules.items() if "Stand-in of" in (m.__doc__ or "")),
    }}

from launcher.train.nemo_aligner import standins
before = state()
gaps = standins.install()
after = state()
changed = sorted(key for key in before if before[key] != after[key])
answer = {{"gaps": gaps, "changed": changed, "placed": after["stand-in modules"], "again": standins.install()}}
print(json.dumps(answer))
"""


def probe(tmp_path, cuda: bool, there: tuple[str, ...]) -> dict:
    for gap in there:
        for package in PACKAGES[gap]:
            (tmp_path / f"{package}.py").write_text("")
    command = [sys.executable, "-c", PROBE.format(cuda=cuda)]
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_done_where_nothing_is_missing(tmp_path):
    found = probe(tmp_path, cuda=True, there=("apex", "transformer_engine"))
    # torch and the environment are left alone; "finders": hooks on what is corrected everywhere
    assert found == {"gaps": [], "changed": ["finders"], "placed": [], "again": []}


def test_gpu_with_pip_packages_gets_the_half_that_is_not_cuda(tmp_path):
    found = probe(tmp_path, cuda=True, there=())
    assert found["gaps"] == ["apex", "transformer_engine"]
    assert found["changed"] == ["environment", "finders", "stand-in modules"]  # torch and torch.cuda are left alone
    assert found["placed"] == ["megatron.core.extensions.transformer_engine", "nemo.core.optim.distributed_adam"]


def test_gpu_with_apex_but_without_transformer_engine(tmp_path):
    found = probe(tmp_path, cuda=True, there=("apex",))
    assert found["gaps"] == ["transformer_engine"]
    assert found["placed"] == ["megatron.core.extensions.transformer_engine"]


def test_cpu_gets_all(tmp_path):
    found = probe(tmp_path, cuda=False, there=())
    assert found["gaps"] == found["again"] == ["cuda", "apex", "transformer_engine"]
    assert "torch" in found["changed"]


def test_pips_namesake_of_apex_is_not_apex(tmp_path):
    (tmp_path / "apex.py").write_text("")  # without amp_C, its CUDA extension
    assert "apex" in probe(tmp_path, cuda=True, there=())["gaps"]


def test_too_late_is_an_error(tmp_path):
    code = """
        import sys, types
        sys.modules["nemo"] = types.ModuleType("nemo")
        from launcher.train.nemo_aligner import standins
        standins.install()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert "RuntimeError: standins.install() must come before the import of nemo" in done.stderr


def tell_what_is_deferred() -> None:
    from launcher.train.nemo_aligner import session

    leave = session.shut_down

    def shut_down() -> None:
        executed = [name for name in deferred.PACKAGES if not deferred._deferred(name)]
        print(f"of {len(deferred.PACKAGES)} packages executed: {executed}", flush=True)
        leave()

    session.shut_down = shut_down


@pytest.mark.nemo
def test_a_trial_uses_none_of_the_deferred_packages(train, new_trial):
    trial = train(new_trial(), change=tell_what_is_deferred)
    assert f"of {len(deferred.PACKAGES)} packages executed: []" in trial.said(), trial.said()
