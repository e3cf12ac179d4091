"""What the bench of conversions measures with: a process and its children, and two folders' bits."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_prep.models import small_models

pytest.importorskip("torch")

from tests.benchmarks import llama3_8b
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


@pytest.mark.nemo
@pytest.mark.slow
def test_llama_3_8b_whole(tmp_path: Path) -> None:
    """32 layers, killed in the middle in both directions: it goes on, and all 291 tensors come back bit for bit."""
    pytest.importorskip("nemo")
    if why := llama3_8b.lacking(tmp_path, 32):
        pytest.skip(why)
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:  # pytest would keep its own folder
        assert llama3_8b.there_and_back(Path(scratch), 32)


@pytest.mark.nemo
@pytest.mark.slow
def test_two_layers_killed_in_the_middle(tmp_path: Path) -> None:
    pytest.importorskip("nemo")
    if why := llama3_8b.lacking(tmp_path, 2):
        pytest.skip(why)
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        assert llama3_8b.there_and_back(Path(scratch), 2)
