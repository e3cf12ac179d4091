"""A .nemo or a JSONL file that training would trip over is found by name and line before anything starts."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launcher.check.files import check_jsonl, check_nemo, check_packed, longer_rows
from launcher.findings import Finding, Refused
from launcher.nemo.data_files import count_rows
from tests.unit.conftest import row, write_nemo


def test_a_good_nemo(tmp_path: Path) -> None:
    write_nemo(tmp_path / "m.nemo")
    assert check_nemo(tmp_path / "m.nemo") == []


def test_missing_nemo_names_the_remedy(tmp_path: Path) -> None:
    (finding,) = check_nemo(tmp_path / "m.nemo")
    assert "no such file" in finding.why and "convert_checkpoint.py" in finding.remedy


@pytest.mark.parametrize("keep", [0, 300, 1000, 5900, 11000])
def test_truncated_anywhere(tmp_path: Path, keep: int) -> None:
    write_nemo(tmp_path / "m.nemo")
    whole = (tmp_path / "m.nemo").read_bytes()
    (tmp_path / "m.nemo").write_bytes(whole[:keep])
    assert len(check_nemo(tmp_path / "m.nemo")) == 1


def test_nemo_without_weights(tmp_path: Path) -> None:
    write_nemo(tmp_path / "m.nemo", ("model_config.yaml",))
    assert "no model_weights" in check_nemo(tmp_path / "m.nemo")[0].why


def test_good_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row(1) + row(2))
    assert check_jsonl(tmp_path / "a.jsonl") == (2, [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "not a JSON object"),
        (row(1, chosen_response="  "), "empty 'chosen_response'"),
        (row(1, rejected_response=""), "empty 'rejected_response'"),
        (json.dumps({"prompt": "a"}), "no text under 'chosen_response'"),
        (row(1, rejected_response=" yes"), "same text"),
        (row(1, chosen_reward="high"), "no number"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(row(1) + line.rstrip("\n") + "\n" + row(3))
    rows, (finding,) = check_jsonl(path)
    assert rows == 3
    assert finding.where == f"{path}:2"
    assert why in finding.why


def test_packs_are_counted_by_the_header_of_their_file(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    path = tmp_path / "train_packed.npy"
    np.save(path, np.array([{"input_ids": [1]}, {}, {}]))
    assert check_packed(path) == (3, [])
    np.save(path, np.zeros(3))
    assert "is no NumPy file of packs" in str(check_packed(path)[1][0])
    for text in (b"", b"\x93NUMPY\x01\x00\x10\x00{", b'{"prompt": "x"}\n'):
        path.write_bytes(text)
        assert "is no NumPy file of packs" in str(check_packed(path)[1][0])
    assert "no such file" in str(check_packed(tmp_path / "gone.npy")[1][0])


def test_a_prepared_file_is_not_parsed_again_until_it_changes(tmp_path: Path) -> None:
    path, record = tmp_path / "train.jsonl", tmp_path / "dataset.json"
    path.write_text(row(0) + "{}\n")

    def described(sha256: str, seconds_younger: int) -> tuple[int, list[Finding]]:
        facts = {"bytes": path.stat().st_size, "sha256": sha256}
        record.write_text(json.dumps({"files": {path.name: facts}, "rows": {"train": 7}}))
        os.utime(record, (path.stat().st_atime, path.stat().st_mtime + seconds_younger))
        return check_jsonl(path)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert described("of what was written", 1) == (7, [])  # nothing has changed the file since
    assert described(digest, -1) == (7, [])  # copied later, the same content
    rows, (finding,) = described("of what was written", -1)
    assert rows == 2 and finding.where == f"{path}:2"


def test_rows_are_counted_alike_before_submission_and_in_the_job(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "a.npy", np.array([{}] * 40))
    (tmp_path / "a.jsonl").write_text("".join(row(i) for i in range(3)))
    assert count_rows(tmp_path / "a.npy", packed=True) == check_packed(tmp_path / "a.npy")[0] == 40
    assert count_rows(tmp_path / "a.jsonl", packed=False) == check_jsonl(tmp_path / "a.jsonl")[0] == 3


@pytest.mark.parametrize(
    ("impl", "names", "rows"),
    [("jsonl", ["a.jsonl"], 3), ("packed_jsonl", ["a.npy"], 40), ("jsonl", ["0.5", "a.jsonl", "0.5", "a.jsonl"], None)],
)
def test_the_job_counts_packs_and_refuses_blends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impl: str, names: list[str], rows: int | None
) -> None:
    np = pytest.importorskip("numpy")
    settings = pytest.importorskip("launcher.train.nemo_aligner.settings")
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "a.npy", np.array([{}] * 40))
    (tmp_path / "a.jsonl").write_text("".join(row(i) for i in range(3)))
    data = OmegaConf.create({"data_impl": impl, "data_prefix": {"train": names}})
    if rows is not None:
        assert settings.count_rows(data) == rows
    else:
        with pytest.raises(Refused, match="into one file"):
            settings.count_rows(data)


def test_the_job_refuses_a_validation_without_a_batch(tmp_path: Path) -> None:
    """The pairs may have been made since the submission: here nothing is loaded yet."""
    settings = pytest.importorskip("launcher.train.nemo_aligner.settings")
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "validation")}
    for (name,) in files.values():
        Path(name).write_text("".join(row(i) for i in range(8)))
    loop = {"max_epochs": 1, "max_steps": -1, "val_check_interval": 1, "save_interval": 1, "limit_val_batches": 0.4}
    model = {"global_batch_size": 4, "data": {"data_impl": "jsonl", "data_prefix": files}}
    config = OmegaConf.create({"trainer": {"dpo": loop}, "model": model})
    with pytest.raises(Refused, match="limit_val_batches=0.4: leaves no batch of the 2"):
        settings._plan(config)
    config.trainer.dpo.limit_val_batches = 1
    assert settings._plan(config).max_steps == 2


def test_rows_too_long_by_the_record_of_their_preparation(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(row(1) + row(2))
    histogram = {"<= 48": 10, "<= 64": 5, "<= 128": 2, "> 8192": 1}
    lengths = {"unit": "tokens", "train": {"max": 9000, "histogram": histogram}}
    record = {"files": {"train.jsonl": {"bytes": path.stat().st_size}}, "lengths": lengths}
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    assert [longer_rows(path, tokens) for tokens in (9000, 8192, 128, 100, 64, 16)] == [0, 1, 1, 3, 3, 18]
    assert longer_rows(tmp_path / "validation.jsonl", 16) == 0
    path.write_text(row(1))  # not what the record is of
    assert longer_rows(path, 16) == 0
    path.write_text(row(1) + row(2))
    (tmp_path / "dataset.json").write_text(json.dumps({**record, "lengths": {**lengths, "unit": "characters"}}))
    assert longer_rows(path, 16) == 0
    (tmp_path / "dataset.json").write_text("{")
    assert longer_rows(path, 16) == 0
