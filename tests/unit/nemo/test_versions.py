"""Sets of NeMo-Aligner, NeMo and Megatron-core: which are let through, and what is said of the others."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from launcher.findings import Refused
from launcher.nemo import versions


def of(aligner: str, nemo: str, megatron: str) -> dict[str, str]:
    return {"nemo-aligner": aligner, "nemo_toolkit": nemo, "megatron-core": megatron}


@pytest.mark.parametrize(
    "numbers",
    [("0.7.0", "2.1.0", "0.10.0"), ("0.7.0", "2.2.0rc3", "0.11.0rc1+791b70e"), ("0.7.1", "2.2.1", "0.11.0")],
)
def test_sets_that_work(numbers) -> None:
    assert versions.unsupported_reason(of(*numbers)) == ""


@pytest.mark.parametrize(
    "numbers, fact",
    [
        (("0.5.0", "2.0.0", "0.9.0"), "nemo-aligner 0.5.0"),  # image 24.09
        (("0.6.0", "2.1.0", "0.10.0"), "pad_length_to_multiple_of"),  # image 24.12 as it comes
        (("0.7.0", "2.3.0", "0.12.0rc4"), "inference_context"),  # image 25.04
        (("0.7.0", "2.0.0", "0.10.0"), "pytorch_lightning"),
        (("0.7.0", "2.1.0", "0.11.0"), "not tried together"),
        (("0.8.0", "2.2.0", "0.11.0"), "nemo-aligner 0.8.0"),
    ],
)
def test_sets_that_do_not(monkeypatch: pytest.MonkeyPatch, numbers, fact: str) -> None:
    assert fact in versions.unsupported_reason(of(*numbers))
    there = of(*numbers)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: there[name])
    with pytest.raises(Refused) as error:
        versions.check()
    assert fact in str(error.value) and "nemo:25.02" in str(error.value) and "nemo-aligner 0.7" in str(error.value)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        if name == "megatron-core":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.7.0" if name == "nemo-aligner" else "2.1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(Refused, match="megatron-core is not installed"):
        versions.check()
    info = tmp_path / "megatron" / "core" / "package_info.py"
    info.parent.mkdir(parents=True)
    info.write_text("MAJOR = 0\nMINOR = 10\nPATCH = 0\nPRE_RELEASE = ''\n")
    versions.check()  # a source tree on the path, as in NVIDIA's images
