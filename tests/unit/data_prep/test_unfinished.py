"""Conversions that are killed go on where they were, in both directions and forms; nothing looks whole too soon."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import convert_checkpoint, unfinished
from data_prep.models import hf_folder, nemo_to_hf, safetensors_writer, small_models
from launcher import whole_file
from launcher.check.files import check_nemo
from launcher.findings import Refused
from launcher.nemo import nemo_file

torch = pytest.importorskip("torch")
ROOT = Path(convert_checkpoint.__file__).parent.parent


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random Llama of four layers."""
    folder = tmp_path / "llama"
    folder.mkdir()
    small_models.write_random_llama(folder, num_hidden_layers=4)
    return folder


def killed_in(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Let call number `call` of owner.name do half of its work, and then end the process as Ctrl-C does."""
    right: Callable[..., object] = getattr(owner, name)
    calls = []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        done = right(*args, **kwargs)
        if len(calls) == call:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(owner, name, interrupted)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("packed", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize("call", [2, 14, 40], ids=["in the embedding", "in the first layer", "in the third layer"])
def test_a_conversion_goes_on(
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packed: bool,
    call: int,
) -> None:
    whole = convert_checkpoint.convert(str(llama), tmp_path / "whole.nemo", packed=packed, verify=False)
    out = tmp_path / "made" / "llama.nemo"
    with monkeypatch.context() as patch:
        killed_in(patch, torch, "save", call)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint.convert(str(llama), out, packed=packed, verify=False)
    assert [path.name for path in out.parent.iterdir()] == [".llama.nemo.unfinished"]
    capsys.readouterr()
    read: list[str] = []
    with monkeypatch.context() as patch:
        right = torch.Tensor.to
        patch.setattr(torch.Tensor, "to", lambda self, *a, **k: (read.append("piece"), right(self, *a, **k))[1])
        convert_checkpoint.convert(str(llama), out, packed=packed, verify=False)
    kept = {2: 0, 14: 1, 40: 3}[call]
    message = f"continues an interrupted conversion: {kept} of 5 files of weights are written already"
    assert (message in capsys.readouterr().err) == (kept > 0)
    assert len(read) == {0: 3 + 4 * 7, 1: 4 * 7, 3: 2 * 7}[kept]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert check_nemo(out) == []
    if packed:
        assert out.read_bytes() == whole.read_bytes()
    else:
        assert content(out) == content(whole)


@pytest.mark.parametrize("call", [1, 9, 21], ids=["in the embedding", "in the first layer", "in the third layer"])
def test_the_way_back_goes_on(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: int
) -> None:
    nemo = convert_checkpoint.convert(str(llama), tmp_path / "llama.nemo", verify=False)
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 300_000)
    monkeypatch.setattr(safetensors_writer, "PART_BYTES", 60_000)
    whole = nemo_to_hf.convert(nemo, tmp_path / "whole")
    out = tmp_path / "made" / "back"
    with monkeypatch.context() as patch:
        killed_in(patch, safetensors_writer.SafetensorsWriter, "add", call)
        with pytest.raises(KeyboardInterrupt):
            nemo_to_hf.convert(nemo, out)
    left = tmp_path / "made" / ".back.unfinished"
    assert [path.name for path in out.parent.iterdir()] == [left.name]
    journal = unfinished.Journal(left / "journal.jsonl").parts
    with pytest.raises(Refused):  # by whoever takes the hidden folder for a model
        hf_folder.open_folder(left / "back")
    capsys.readouterr()
    nemo_to_hf.convert(nemo, out)
    message = capsys.readouterr().err
    assert f"continues an interrupted conversion: {journal[-1]['tensors']} of 39 tensors" in message
    assert [path.name for path in out.parent.iterdir()] == ["back"]
    assert content(out) == content(whole)


KILLED = """
import os, signal, sys, torch
from data_prep import convert_checkpoint
right, calls = torch.save, []
def save(value, stream):
    calls.append(value)
    right(value, stream)
    if len(calls) == 40:
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
convert_checkpoint.main(sys.argv[1:])
"""


def test_a_real_kill(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = convert_checkpoint.convert(str(llama), tmp_path / "whole.nemo", verify=False)
    out = tmp_path / "made" / "llama.nemo"
    words = [str(llama), str(out), "--no-verify"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    part = out.parent / ".llama.nemo.unfinished" / out.name
    assert part.stat().st_size > 0
    assert check_nemo(part), "what a kill leaves must not pass for a whole file"
    assert convert_checkpoint.main(words) == 0
    assert "3 of 5 files of weights are written already" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_another_source_starts_anew(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        killed_in(patch, torch, "save", 40)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint.convert(str(llama), tmp_path / "out.nemo", verify=False)
    small_models.write_random_llama(llama, seed=2, num_hidden_layers=4)
    capsys.readouterr()
    made = convert_checkpoint.convert(str(llama), tmp_path / "out.nemo", verify=False)
    assert "continues" not in capsys.readouterr().err
    other = convert_checkpoint.convert(str(llama), tmp_path / "other.nemo", verify=False)
    assert made.read_bytes() == other.read_bytes()


def test_one_process_at_a_time(llama: Path, tmp_path: Path) -> None:
    work = tmp_path / ".out.nemo.unfinished"
    work.mkdir()
    with whole_file.locked(work / "lock"), pytest.raises(Refused, match="another process is making it"):
        convert_checkpoint.convert(str(llama), tmp_path / "out.nemo", verify=False)


def test_a_full_disk_keeps_what_there_is(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(value: object, stream: object, _right: Callable[..., None] = torch.save) -> None:
        calls.append(value)
        if len(calls) == 40:
            raise OSError(28, "No space left on device")
        _right(value, stream)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert convert_checkpoint.main([str(llama), str(tmp_path / "out.nemo"), "--no-verify"]) == 2
    journal = unfinished.Journal(tmp_path / ".out.nemo.unfinished" / "journal.jsonl")
    assert len(journal.parts) == 4


def test_a_line_cut_off_by_a_kill_is_no_part(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    unfinished.Journal(file).add({"part": "a"})
    file.write_bytes(file.read_bytes() + b'{"part": ')
    journal = unfinished.Journal(file)
    journal.add({"part": "b"})
    assert [json.loads(line)["part"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_folder_form(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same content as the file has; made once; other people's folders are not replaced."""
    out = tmp_path / "base"
    words = ["--folder", str(llama), str(out), "--no-verify"]
    assert convert_checkpoint.main(words) == 0
    packed = convert_checkpoint.convert(str(llama), tmp_path / "packed.nemo", verify=False)
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    ours = content(out)
    assert ours.pop(".dpo-launcher.json")
    assert ours == content(tmp_path / "unpacked")
    assert nemo_file.read_record(out) == nemo_file.read_record(packed)
    capsys.readouterr()
    assert convert_checkpoint.main(words) == 0
    assert "exists already" in capsys.readouterr().out
    (out / "notes.txt").write_text("mine")
    assert convert_checkpoint.main([*words, "--force"]) == 2
    assert "other files in it, such as notes.txt" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert convert_checkpoint.main([*words, "--force"]) == 0
    assert convert_checkpoint.main(["--folder", str(llama), str(packed), "--no-verify"]) == 2
    assert "is not a folder" in capsys.readouterr().err
