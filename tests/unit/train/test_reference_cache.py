"""Reference log-probabilities in files: found by what they depend on, never taken from a file that is not whole."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from launcher.train.nemo_aligner.savings.reference_cache import (
    Cache,
    Damaged,
    Part,
    file_digest,
    group_name,
    private_folder,
    row_digest,
)

KEY = {"base": "a", "precision": "32"}
ROWS = {row_digest([b"one"]): struct.pack("<3f", -1.5, -2.5, 0.0), row_digest([b"two"]): b""}
ONE = row_digest([b"one"])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The file of a part with ROWS."""
    Cache(tmp_path, KEY).write("name", ROWS)
    (path,) = tmp_path.rglob("*.part")
    return path


def again(path: Path) -> Cache:
    cache = Cache(path.parent.parent, KEY)
    cache.refresh()
    return cache


def change_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_was_written_is_found(written: Path) -> None:
    cache = again(written)
    assert cache.has("name")
    assert {row: bytes(cache.find(row)) for row in ROWS} == ROWS
    assert cache.find(row_digest([b"three"])) is None
    assert [path.name for path in written.parent.iterdir() if path.name.startswith(".")] == []


def test_another_key_has_another_folder(written: Path, tmp_path: Path) -> None:
    other = Cache(tmp_path, {**KEY, "precision": "bf16"})
    other.refresh()
    assert other.find(ONE) is None
    os.link(written, other.folder / "name.part")  # moved by hand
    other.refresh()
    assert not other.has("name")
    assert other.damaged == {"name.part": "was made for another model or setting"}


@pytest.mark.parametrize("size", [0, 5, 60, 100, 111])
def test_a_file_cut_short_is_not_used(written: Path, size: int) -> None:
    assert written.stat().st_size > size
    os.truncate(written, size)
    cache = again(written)
    assert not cache.has("name")
    assert cache.find(ONE) is None
    assert list(cache.damaged) == ["name.part"]
    cache.write("name", ROWS)
    assert bytes(cache.find(ONE)) == ROWS[ONE]
    assert cache.damaged == {}


def test_a_damaged_table_is_noticed(written: Path) -> None:
    change_byte(written, 60)
    assert not again(written).has("name")


def test_damaged_values_are_noticed_and_the_file_removed(written: Path) -> None:
    change_byte(written, written.stat().st_size - 1)
    cache = again(written)
    assert cache.has("name")
    assert cache.find(ONE) is None
    assert not written.exists()
    assert cache.damaged == {"name.part": "has damaged values"}
    assert not again(written).has("name")


def test_every_single_byte_counts(written: Path) -> None:
    whole = written.read_bytes()
    for place in range(len(whole)):
        written.write_bytes(whole)
        change_byte(written, place)
        try:
            part = Part(written, Cache(written.parent.parent, KEY).key)
            values = {row: bytes(part.values(row)) for row in ROWS}
        except (Damaged, KeyError):
            continue
        pytest.fail(f"byte {place} was changed and {values} was read")


def test_others_parts_are_found_by_name_alone(written: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path, KEY)
    cache.refresh(["name", "not there"])
    assert cache.names() == ["name"]


def test_digests_tell_rows_apart() -> None:
    assert row_digest([b"ab", b"c"]) != row_digest([b"a", b"bc"])
    assert group_name({"files": ["x"], "places": [1, 2]}) != group_name({"files": ["x"], "places": [2, 1]})


def test_a_changed_file_has_another_digest_though_one_was_noted(tmp_path: Path) -> None:
    file, notes = tmp_path / "model.nemo", tmp_path / "notes"
    file.write_bytes(b"x" * 100)
    first = file_digest(file, notes)
    assert file_digest(file, notes) == first == file_digest(file)
    changed = file.stat().st_mtime_ns
    file.write_bytes(b"y" * 100)
    os.utime(file, ns=(changed + 1, changed + 1))
    assert file_digest(file, notes) == file_digest(file) != first


def test_a_folder_has_a_digest_of_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    first = file_digest(folder)
    (folder / "a").rename(folder / "b")
    assert file_digest(folder) != first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_anothers_numbers_are_not_believed(written: Path) -> None:
    """A group shares paths.cache: what another user may have written there could be wrong on purpose."""
    os.chown(written.parent, 65534, 65534)
    cache = again(written)
    assert not cache.has("name") and cache.folder == written.parent.with_name(f"{written.parent.name}-0")
    cache.write("name", ROWS)
    assert again(written).has("name"), "one's own is found the next time"
    os.chown(cache.folder, 65534, 65534)
    with pytest.raises(PermissionError, match="another user"):
        again(written)


def test_a_link_is_no_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "cache").symlink_to("target")
    assert private_folder(tmp_path / "cache") == tmp_path / f"cache-{os.geteuid()}"


def test_nobody_else_can_write_a_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    assert stat.S_IMODE(private_folder(tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(Cache(tmp_path, KEY).folder.stat().st_mode) == 0o700


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where parts are missing, a claim could not be written in the middle of a start."""
    Cache(tmp_path, KEY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError):
        Cache(tmp_path, KEY)
