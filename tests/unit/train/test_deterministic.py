"""deterministic=true: the variables and switches by which a GPU repeats itself bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from launcher.findings import Refused
from launcher.train import deterministic

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in deterministic.VARIABLES:
        monkeypatch.setenv(name, "")  # so that monkeypatch removes at the end what enable() sets
        monkeypatch.delenv(name)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


def test_switches_and_variables_are_set() -> None:
    torch.backends.cudnn.benchmark = True
    deterministic.enable()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"
    assert os.environ["NCCL_ALGO"] == "Ring"


def test_a_deterministic_value_of_the_site_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    deterministic.enable()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_values_that_are_not_deterministic_are_refused_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1")
    with pytest.raises(Refused) as refused:
        deterministic.enable()
    assert {finding.where for finding in refused.value.findings} == {"NCCL_ALGO", "NVTE_ALLOW_NONDETERMINISTIC_ALGO"}
    assert not torch.are_deterministic_algorithms_enabled()
