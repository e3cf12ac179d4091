"""What the bench of conversions measures with: a process and its children, and two folders' bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.models import small_models

pytest.importorskip("torch")

from tests.benchmarks.convert import large, measured, same_bits


def test_memory_of_children_counts() -> None:
    fill = "x = b'x' * 200_000_000; import time; time.sleep(0.5)"
    run = measured([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {fill!r}])"])
    assert 200e6 < run.peak < 300e6


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        measured([sys.executable, "-c", "import sys; sys.exit(3)"])


def test_one_changed_bit_is_noticed(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        small_models.write_random_llama(folder)
    assert same_bits(*folders)
    weights = folders[1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert not same_bits(*folders)


@pytest.mark.nemo
@pytest.mark.slow
def test_llama_3_8b_layers(tmp_path: Path) -> None:
    """True sizes, two layers: proved by NeMo, back bit for bit, and peak memory within its bound."""
    pytest.importorskip("nemo")
    assert large(tmp_path, 2)
