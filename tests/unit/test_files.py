"""A .nemo or a JSONL file that training would trip over is found by name and line before anything starts."""

import json
from pathlib import Path

import pytest

from launcher.files import check_jsonl, check_nemo
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
