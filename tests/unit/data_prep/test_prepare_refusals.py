"""What prepare_data.py refuses, what it leaves alone, and what is left when it is stopped in the middle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs import jsonl, output
from data_prep.prepare_data import main
from tests.unit.prepare_tools import Prepare, Refusal, characters_as_tokens, many, record_of, write


def test_bad_files_are_refused_in_one_line(refused: Refusal, tmp_path: Path) -> None:
    assert "did you mean sample" in refused("sampel")
    assert "no such file" in refused(tmp_path / "gone.jsonl")
    assert "not gzip" in refused(write(tmp_path / "plain", many(60)).rename(tmp_path / "plain.jsonl.gz"))
    cut = write(tmp_path / "cut.jsonl.gz", many(5000))
    cut.write_bytes(cut.read_bytes()[:-100])
    assert "cut off" in refused(cut)
    (tmp_path / "folder").mkdir()
    assert "contains no .jsonl" in refused(tmp_path / "folder")
    assert "no pairs left of 0 rows" in refused(write(tmp_path / "empty.jsonl", []))
    (tmp_path / "head.csv").write_text("prompt,chosen,rejected\n")
    assert "no pairs left of 0 rows" in refused(tmp_path / "head.csv")
    number = {"prompt": "q", "chosen": "yes", "rejected": 3}
    assert "'rejected' is int" in refused(write(tmp_path / "number.jsonl", [number]))
    answered = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    others = ([{"role": "assistant", "content": text}] for text in ("b", "c"))
    turns = [{"prompt": answered, **dict(zip(("chosen", "rejected"), others, strict=True))}]
    assert "1 broken turn order" in refused(write(tmp_path / "turns.jsonl", turns))
    whole = "\n\nAssistant: no question"
    bad = [{"chosen": whole, "rejected": whole}] * 2
    assert "2 broken turn order" in refused(write(tmp_path / "none.jsonl", bad))
    assert "2 no prompt" in refused(write(tmp_path / "none.jsonl", [{"chosen": "a", "rejected": "b"}] * 2))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ('"text"', "not a JSON object"),
        (b'{"chosen": "\xff"}', "not UTF-8"),
        ('{"chosen": "x"}', "no key 'rejected'"),
        ('{"chosen": "x", "rejected": 3}', "'rejected' is int"),
    ],
)
def test_bad_line_is_refused_with_file_and_line(refused: Refusal, tmp_path: Path, line: Any, why: str) -> None:
    source = write(tmp_path / "pairs.jsonl.gz", [*many(3), "", line, *many(60)])
    assert re.search(rf"pairs\.jsonl\.gz:5: .*{why}.*--skip-bad-lines", refused(source))


def test_options_that_cannot_be_are_refused(refused: Refusal) -> None:
    for options, why in (
        (["--max-tokens", "96"], "needs a tokenizer"),
        (["--validation", "0.1"], "give both"),
        (["--validation", "0.6", "--test", "0.5"], "nothing to train on"),
        (["--validation", "-1", "--test", "8"], "neither a share"),
        (["--validation", "nan", "--test", "0.1"], "neither a share"),
        (["--limit", "0"], "not a number of 1"),
        (["--too-long", "cut"], "needs --max-tokens"),
        (["--pack", "4096"], "add --max-tokens 2048 or less"),
        (["--subset"], "expected one argument"),
        (["--tokeniser", "x"], "unrecognized"),
        (["--validation", "300", "--test", "60"], "train.jsonl: gets 0 of"),
    ):
        assert why in refused("sample", *options)
    assert "--splits=train: applies only to a folder or a set of the hub" in refused("hh_rlhf", "--splits", "train")
    assert "--revision=main: applies only to a set of the hub" in refused("sample", "--revision", "main")
    assert "--subset=a: applies only to HH-RLHF" in refused("sample", "--subset", "a")
    assert "has no such" in refused("hh_rlhf", "--subset", "harmful")


def test_split_that_would_be_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "pairs.jsonl", many(3))
    assert main([str(source), "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"(test|validation).jsonl: gets 0 of 3 pairs, but 1 are needed", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written_is_refused(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("sample", "--out", str(tmp_path / "file"))
    assert "cannot be written" in refused("sample", "--out", str(tmp_path / "file" / "below"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written (Permission denied)" in refused("sample", "--out", str(tmp_path / "locked"))


def test_files_of_others_and_the_source_are_not_overwritten(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "out" / "train.jsonl", many(60))
    before = source.read_bytes()
    assert main(["sample", "--out", str(tmp_path / "out")]) == 2
    assert main([str(tmp_path / "out"), "--out", str(tmp_path / "out"), "--force"]) == 2
    assert source.read_bytes() == before
    prepare("sample", "--force")
    assert record_of(tmp_path / "out")["rows"]["train"] == 288


def stamps(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())


def test_second_run_does_nothing_until_something_changes(
    prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "pairs.jsonl", many(100))
    before = stamps(prepare(source))
    assert stamps(prepare(source)) == before
    assert "up to date" in capsys.readouterr().out

    def remade(*options: str) -> None:
        nonlocal before
        after = stamps(prepare(source, *options))
        assert all(new[1] > old[1] for new, old in zip(after, before, strict=True))
        assert stamps(prepare(source, *(option for option in options if option != "--force"))) == after
        before = after

    remade("--force")
    remade("--limit", "90")
    remade("--tokenizer", str(characters_as_tokens(tmp_path / "hf")))
    write(source, many(101))
    remade()
    (tmp_path / "out" / "test.jsonl").write_bytes(b"")
    remade()
    (tmp_path / "out" / "dataset.json").write_text('{"rules": 1, "files": []}')
    remade()


class Stop(BaseException):
    """Stands for a signal that ends the process in the middle."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, OSError(28, "No space left on device")])
@pytest.mark.parametrize("there", [True, False], ids=["over an old set", "fresh"])
def test_interrupted_run_leaves_what_was_there(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, there: bool
) -> None:
    if there:
        prepare("sample")
    before = stamps(tmp_path / "out") if there else None
    written = jsonl.Writer.write

    def failing(self: jsonl.Writer, line: bytes) -> None:
        if self.rows == 20:
            raise error
        written(self, line)

    monkeypatch.setattr(jsonl.Writer, "write", failing)
    source = write(tmp_path / "pairs.jsonl", many(100))
    if error is Stop:
        with pytest.raises(Stop):
            main([str(source), "--out", str(tmp_path / "out")])
    else:
        assert main([str(source), "--out", str(tmp_path / "out")]) == (130 if error is KeyboardInterrupt else 2)
    assert (tmp_path / "out").exists() == there
    assert not there or stamps(tmp_path / "out") == before


@pytest.mark.parametrize("after", range(4))
def test_killed_while_publishing_never_looks_whole(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    old = prepare("sample")
    sizes = {path.name: path.stat().st_size for path in old.iterdir()}
    replaced = os.replace
    calls: list[str] = []

    def failing(source: Path, target: Path) -> None:
        if len(calls) == after:
            raise Stop
        calls.append(str(target))
        replaced(source, target)

    monkeypatch.setattr(output.os, "replace", failing)
    source = write(tmp_path / "pairs.jsonl", many(100))
    with pytest.raises(Stop):
        main([str(source), "--out", str(old)])
    left = {path.name: path.stat().st_size for path in old.iterdir()}
    assert "dataset.json" not in left
    assert len(left) == after
    assert all(sizes[name] != size for name, size in left.items())  # none of the old files among the new


def test_leftovers_of_killed_runs_are_removed(prepare: Prepare, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = os.uname().nodename
    for pid in (gone.pid, os.getppid()):
        (tmp_path / "out" / f".partial.{host}.{pid}").mkdir(parents=True)
    prepare("sample")
    assert [path.name for path in (tmp_path / "out").glob(".partial*")] == [f".partial.{host}.{os.getppid()}"]


def test_a_run_that_was_killed_while_publishing_can_be_made_again(prepare: Prepare, tmp_path: Path) -> None:
    """Its work folder still holds the record. In a container the next run may have the same process id."""
    left = tmp_path / "out" / f".partial.{os.uname().nodename}.{os.getpid()}"
    left.mkdir(parents=True)
    (left / "dataset.json").write_text("{}")
    (tmp_path / "out" / "train.jsonl").write_text("{}\n")
    prepare("sample")
    assert (tmp_path / "out" / "dataset.json").exists() and not left.exists()
