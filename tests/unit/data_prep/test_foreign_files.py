"""Files of other people: pickles in checkpoints are not run, and folders that were not made here are not replaced."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from data_prep import convert_checkpoint, folders  # noqa: E402
from data_prep.models import adapters, safe_pickle, small_models  # noqa: E402
from data_prep.models.torch_dist import INDEX, CheckpointReader, CheckpointWriter  # noqa: E402
from launcher.findings import Refused  # noqa: E402
from tests.unit.llama import new_nemo  # noqa: E402


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_the_index_of_a_checkpoint_is_read_and_nothing_is_run(tmp_path: Path) -> None:
    weights = tmp_path / "nemo" / "model_weights"
    writer = CheckpointWriter(new_nemo(tmp_path / "nemo"), torch.bfloat16)
    with writer.file(0):
        writer.tensor("a", torch.ones(2, 3), (0, 0), (2, 3))
        writer.nothing("b")
    writer.close()
    assert CheckpointReader(tmp_path / "nemo").region("a", (0, 1), (2, 2)).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    index = pickle.loads((weights / INDEX).read_bytes())
    index.storage_meta = Evil(tmp_path / "run")
    (weights / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(Refused, match="refers to .*system"):
        CheckpointReader(tmp_path / "nemo")
    assert not (tmp_path / "run").exists()


def test_an_index_that_nemo_saved_is_read(tmp_path: Path) -> None:
    """By torch's own writer, whose index has more in it than ours."""
    import torch.distributed.checkpoint as dcp

    dcp.save({"weight": torch.arange(6.0).reshape(2, 3), "other": [1]}, checkpoint_id=tmp_path / "model_weights")
    assert CheckpointReader(tmp_path).region("weight", (1, 0), (1, 3)).tolist() == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_only_tensors_of_a_training_checkpoint_are_read(tmp_path: Path, zipped: bool) -> None:
    state = {"adapter": torch.arange(4, dtype=torch.bfloat16), "scale": torch.nn.Parameter(torch.ones(2))}
    file = tmp_path / "last.ckpt"
    saved = {"state_dict": state, "hyper_parameters": {"cfg": Evil(tmp_path / "run"), "path": Path("x")}}
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    read = adapters._from_checkpoint(file)[0, 0]
    assert read["adapter"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert read["scale"].tolist() == [1.0, 1.0]
    assert not (tmp_path / "run").exists()


def test_real_configs_in_a_checkpoint_do_no_harm(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": {"b": [1, 2]}})
    torch.save({"state_dict": {"w": torch.ones(1)}, "cfg": config}, tmp_path / "x.ckpt")
    loaded = torch.load(tmp_path / "x.ckpt", weights_only=False, pickle_module=safe_pickle)
    assert isinstance(loaded["cfg"], safe_pickle.Placeholder)
    assert loaded["state_dict"]["w"].tolist() == [1.0]


# -- folders -----------------------------------------------------------------------------------------------------------


def filled(out: Path, force: bool = False, content: str = "{}") -> None:
    folders.check("--out", out, force)
    with folders.new_folder("--out", out) as folder:
        (folder / "config.json").write_text(content)


def test_only_folders_made_here_are_replaced(tmp_path: Path) -> None:
    filled(tmp_path / "out")
    with pytest.raises(Refused, match="--force to replace"):
        filled(tmp_path / "out")
    filled(tmp_path / "out", force=True, content="[]")
    assert (tmp_path / "out" / "config.json").read_text() == "[]"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match=r"other files in it, such as notes\.txt"):
        filled(tmp_path / "out", force=True)
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text("{}")
    (project / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match="other files in it"):
        filled(project, force=True)
    assert (project / "thesis.tex").read_text() == "years of work"


def test_the_old_folder_stays_where_the_new_one_cannot_be_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "out", content="old")
    rename, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(122, "Disk quota exceeded")
        rename(source, target)

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(Refused, match="quota"):
        filled(tmp_path / "out", force=True, content="new")
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_users_folder_of_a_small_models_name_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "hf" / "tiny"
    own.mkdir(parents=True)
    (own / "model.safetensors").write_text("mine")
    assert convert_checkpoint.main(["tiny", str(tmp_path / "tiny.nemo"), "--no-verify"]) == 2
    message = capsys.readouterr().err
    assert "error: " in message
    assert "was not made by this command" in message
    assert (own / "model.safetensors").read_text() == "mine"
    (own / "RECIPE").write_text("tiny/0")  # of an older version of this command
    small_models.ensure("tiny", tmp_path / "hf")
    assert (own / "RECIPE").read_text().strip() == small_models.recipe("tiny")


def test_no_code_of_a_hugging_face_folder_is_run() -> None:
    """Without the argument, transformers asks at a terminal whether to run the folder's own code."""
    calls = refused = 0
    for path in (Path(__file__).resolve().parents[3] / "data_prep").rglob("*.py"):
        text = path.read_text()
        calls += len(re.findall(r"\.from_pretrained\(", text))
        refused += len(re.findall(r"trust_remote_code(?:=|\": )False", text))
    assert calls == refused > 0
