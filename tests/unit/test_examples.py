"""docs/examples: what stands there runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit import report_sweep

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    matplotlib.use("agg")
    report_sweep.finish(report_sweep.make(tmp_path / "runs" / "ablation" / "1"))
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "compare.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "3 trials" in capsys.readouterr().out
    assert list(names["table"]["beta"]) == [0.05, 0.1, 0.5]
    assert list(names["curves"].columns) == ["beta 0.05", "beta 0.1", "beta 0.5"]
    assert names["curves"].loc[0].tolist() == [0.6931] * 3
    assert len(names["axes"].lines) == 3


def test_the_notebook_is_stored_without_results() -> None:
    for cell in json.loads((EXAMPLES / "compare.ipynb").read_text())["cells"]:
        assert not cell.get("outputs")


def test_the_cluster_and_data_files(tmp_path: Path) -> None:
    words = ["--cfg", "job", "--config-dir", str(EXAMPLES), "cluster=mysite", "data=mine", "model=tiny"]
    shown = subprocess.run(
        [sys.executable, "-m", "launcher", "sweep", *words],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    config = yaml.safe_load(shown.stdout)
    assert config["model"]["data"]["data_prefix"]["train"] == ["${paths.data}/mine/train.jsonl"]
    cluster = config["cluster"]
    assert (cluster["name"], cluster["time"], cluster["max_timeouts"]) == ("mysite", "4:00:00", 50)
    assert cluster["requeue"] is True  # of the project's own `slurm`


def test_the_pairs(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    script = ROOT / "data_prep" / "prepare_data.py"
    options = ["--out", out, "--validation", "1", "--test", "1"]
    command = [sys.executable, script, EXAMPLES / "pairs.jsonl", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    written = [line for split in ("train", "validation", "test") for line in (out / f"{split}.jsonl").open()]
    assert len(written) == 4
