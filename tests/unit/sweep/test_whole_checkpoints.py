"""launcher.sweep.checkpoints: which files are a checkpoint, and which only look like one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher.sweep import checkpoints

NAME = "megatron_gpt--val_loss=0.371-step={step}-consumed_samples=8-epoch=0{last}.ckpt"


def write(trial: Path, step: int, parts: tuple[str, ...] = ("",), last: bool = True, seal: bool = True) -> Path:
    """A checkpoint of one file, of one in each of `parts` (mp_rank_00), or, for "/", in a folder of its own."""
    path = trial / checkpoints.FOLDER / NAME.format(step=step, last="-last" * last)
    for part in parts:
        place = path.with_suffix("") / "common.pt" if part == "/" else path.parent / part / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.urandom(1000 + step))
    if seal:
        files = {name: checkpoints.describe(path.parent / name) for name in checkpoints.files_of(path)}
        checkpoints.write_manifest(path, files, step, 4 * step)
    return path


@pytest.mark.parametrize("parts", [("",), ("mp_rank_00", "mp_rank_01"), ("tp_rank_00_pp_rank_001",), ("/",)])
def test_the_highest_whole_one_is_taken(tmp_path, parts):
    assert checkpoints.last_good(tmp_path) is None
    write(tmp_path, 4, parts)
    write(tmp_path, 12, parts)
    write(tmp_path, 16, parts, seal=False)
    found = checkpoints.last_good(tmp_path)
    assert (found.step, found.consumed_samples) == (12, 48)
    assert found.path.suffix == ("" if parts == ("/",) else ".ckpt") or parts == ("/",)
    assert len(checkpoints.all_of(tmp_path / checkpoints.FOLDER)) == 3
    assert checkpoints.is_whole(found.path)


@pytest.mark.parametrize("parts", [("",), ("mp_rank_00", "mp_rank_01"), ("/",)])
def test_one_that_has_changed_is_not(tmp_path, parts):
    write(tmp_path, 4, parts)
    path = write(tmp_path, 8, parts)
    file = path.parent / checkpoints.files_of(path)[-1]
    whole = file.read_bytes()
    for damage in (whole[:-1], whole + b"\0", b""):
        file.write_bytes(damage)
        assert checkpoints.last_good(tmp_path, hashes=False).step == 4
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert checkpoints.last_good(tmp_path, hashes=False).step == 8
    assert checkpoints.last_good(tmp_path).step == 4
    file.unlink()
    assert checkpoints.last_good(tmp_path, hashes=False).step == 4


def test_of_equal_steps_the_last_written(tmp_path):
    best, last = write(tmp_path, 4, last=False), write(tmp_path, 4)
    assert checkpoints.last_good(tmp_path).path == last
    manifest = checkpoints.manifest_of(best)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "time": 4e9}))
    assert checkpoints.last_good(tmp_path).path == best


def test_a_manifest_cut_off_counts_as_none(tmp_path):
    write(tmp_path, 4)
    manifest = checkpoints.manifest_of(write(tmp_path, 8))
    for text in ("", manifest.read_text()[:50], "{}", "[]"):
        manifest.write_text(text)
        assert checkpoints.last_good(tmp_path).step == 4


def test_a_nemo_file_is_no_checkpoint(tmp_path):
    path = tmp_path / checkpoints.FOLDER / "megatron_gpt.nemo"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"adapters")
    assert not checkpoints.is_whole(path)
    checkpoints.write_manifest(path, {path.name: checkpoints.describe(path)}, 9, 36)
    assert checkpoints.is_whole(path)
    assert checkpoints.last_good(tmp_path) is None
