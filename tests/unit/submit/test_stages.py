"""The stages that come before a sweep: in which order, what each is given, what is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from launcher.check import preflight
from launcher.compose.trials import PlannedTrial
from launcher.findings import Refused
from launcher.submit import stages
from launcher.submit.pipeline import Sources, stages_before
from launcher.submit.stages import Stage
from tests.unit.conftest import changed
from tests.unit.llama import TINY, write_described


@pytest.fixture
def before(composed: Any) -> Any:
    """before(*overrides of each trial) -> the stages before a sweep of them; `model`: more of their keys."""

    def ask(*trials: list[str], pairs: str | None = None, model: dict[str, Any] | None = None) -> list[Stage]:
        configs = []
        for words in trials:
            config, found = composed("model=tiny", "data=sample", *words)
            assert found == []
            configs.append(
                PlannedTrial(
                    [],
                    changed(
                        config, {f"model.{key}": value for key, value in (model or {}).items()}, frozenset({"model"})
                    ),
                )
            )
        return stages_before(configs, Sources(pairs))

    return ask


def words(stage: Stage) -> list[str]:
    """What prepare_data.py is given behind its name."""
    return list(stage.command[2:])


def test_the_model_comes_before_the_data_which_are_counted_with_it(before: Any, workspace: Path) -> None:
    shutil.rmtree(workspace / "data")
    nemo = workspace / "models" / "tiny.nemo"
    nemo.unlink()
    model, data = before(["model.encoder_seq_length=128"], ["model.encoder_seq_length=192"])
    assert [model.name, data.name] == ["convert_checkpoint", "prepare_data"]
    folder = str(workspace / "data" / "sample")
    assert words(data) == ["sample", "--out", folder, "--tokenizer", str(nemo), "--max-tokens", "192"]
    assert nemo in data.reads, "a container has to see it"


def test_the_tokenizer_is_the_trials(before: Any, workspace: Path) -> None:
    nemo = workspace / "models" / "tiny.nemo"
    assert "--tokenizer" not in words(before([])[1]), "nothing in this file to count with"
    write_described(nemo, TINY, 10)
    assert words(before([])[1])[-4:] == ["--tokenizer", str(nemo), "--max-tokens", "256"]
    own = workspace / "own"
    own.mkdir()
    (own / "tokenizer.model").write_text("")
    assert words(before([], model={"tokenizer": {"type": str(own)}})[1])[-3] == str(own)


def test_pairs_of_the_hub_have_a_name(before: Any, workspace: Path) -> None:
    shutil.rmtree(workspace / "data")
    data = before([], pairs="owner/set")[1]
    assert (words(data)[0], data.reads) == ("owner/set", [])
    with pytest.raises(Refused, match="models/set: no such file"):  # there is such a folder, so it is a path
        before([], pairs="models/set")


def test_what_is_whole_is_there(before: Any, workspace: Path) -> None:
    assert [stage.there for stage in before([])] == ["whole", "not made by prepare_data.py, used unchanged"]
    folder = workspace / "data" / "sample"
    sizes = {f"{split}.jsonl": {"bytes": (folder / f"{split}.jsonl").stat().st_size} for split in stages.SPLITS}
    record = {"files": sizes, "rows": {"train": 16, "validation": 8, "test": 8}}
    (folder / "dataset.json").write_text(json.dumps(record))
    assert before([])[1].there == "16 + 8 + 8 pairs"
    with (folder / "test.jsonl").open("a") as stream:
        stream.write("x")
    assert before([])[1].there == ""


def test_what_is_not_there_is_made(before: Any, workspace: Path) -> None:
    (workspace / "models" / "tiny.nemo").unlink()
    (workspace / "data" / "sample" / "test.jsonl").unlink()
    assert [stage.there for stage in before([])] == ["", ""]


def test_a_damaged_model_of_somebody_elses_is_refused(before: Any, workspace: Path) -> None:
    (workspace / "models" / "tiny.nemo").write_bytes(b"x" * 5000)
    with pytest.raises(Refused, match="tiny.nemo"):
        before([])


def test_preflight_leaves_out_what_will_be_made(composed: Any, workspace: Path) -> None:
    for name in ("models/tiny.nemo", "data/sample/train.jsonl"):
        (workspace / name).unlink()
    preflight._nemo_file.cache_clear()
    preflight._jsonl.cache_clear()
    config, _ = composed("model=tiny", "data=sample")
    trials = [PlannedTrial([], config)]
    assert len(preflight.findings(trials, None)) == 2
    expected = {workspace / "models" / "tiny.nemo", workspace / "data" / "sample" / "train.jsonl"}
    assert preflight.findings(trials, None, expected) == []
    assert preflight.warnings(trials, None) == []
    assert "do not exist yet" in preflight.summary(config)


@pytest.mark.parametrize(("gib", "asked"), [(0, 8), (1, 9), (15, 10), (131, 25)])  # 15 GiB: Llama-3-8B in bf16
def test_a_conversion_asks_for_the_memory_of_some_layers(tmp_path: Path, gib: int, asked: int) -> None:
    """The proof of a model above 2 GiB holds a layer at a time; no node need have room for it in fp32."""
    for part in range(2):
        with (tmp_path / f"model-{part}.safetensors").open("wb") as file:
            file.truncate(gib << 29)  # a file without blocks
    assert stages._conversion_gb(tmp_path) == asked
