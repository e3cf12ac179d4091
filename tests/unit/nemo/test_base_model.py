"""What of a trial does not go with its base model is found in the .nemo, before anything is loaded."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from launcher.check import preflight
from launcher.compose.trials import PlannedTrial
from launcher.findings import Refused
from launcher.nemo import base_model, nemo_file
from tests.unit.check.test_preflight import fresh_file_checks  # noqa: F401
from tests.unit.conftest import changed
from tests.unit.llama import LLAMA3_8B, TINY, write_described


@pytest.fixture
def refused(composed: Any, workspace: Path) -> Any:
    """refused(base model's config, *overrides) -> what preflight says, as text."""

    def ask(base: dict[str, Any], *overrides: str, without: str = "") -> list[str]:
        write_described(workspace / "models" / "tiny.nemo", base, 1024, without)
        config, found = composed("model=tiny", *overrides)
        assert found == []
        return [str(f) for f in preflight.findings([PlannedTrial([], config)], workspace / "runs" / "s")]

    return ask


def test_reading_a_nemo(workspace: Path) -> None:
    base = base_model.load(write_described(workspace / "m.nemo", LLAMA3_8B, 128256))
    assert base is not None and base.shaped
    assert (base.vocabulary, base.tokenizer_bytes, base.config["num_layers"]) == (128256, 2, 32)
    assert base_model.load(workspace / "none.nemo") is None
    (workspace / "no.nemo").write_text("no archive")
    assert base_model.load(workspace / "no.nemo") is None


def test_an_unpacked_nemo_and_a_file_that_changes(workspace: Path) -> None:
    folder = workspace / "unpacked"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model_config.yaml").write_text("num_layers: 2\nhidden_size: 64\n")
    (folder / "tokenizer" / "config.json").write_text('{"vocab_size": 300}')
    base = base_model.load(folder)
    assert base is not None and (base.vocabulary, base.shaped) == (300, False)
    path = write_described(workspace / "m.nemo", TINY, 10)
    assert base_model.load(path).vocabulary == 10  # type: ignore[union-attr]
    assert base_model.load(write_described(path, TINY, 1000)).vocabulary == 1000  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["- a\n- list\n", "!odd tag", "{", "\x00"])
def test_a_config_that_cannot_be_read_says_nothing(workspace: Path, text: str) -> None:
    (workspace / "unpacked").mkdir()
    (workspace / "unpacked" / "model_config.yaml").write_text(text)
    base = base_model.load(workspace / "unpacked")
    assert base is not None and base.config == {} and not base.shaped


def test_a_good_one(refused: Any) -> None:
    assert refused(TINY) == []
    two = ["trainer.devices=2", "model.global_batch_size=4"]
    assert refused(TINY, *two, "model.tensor_model_parallel_size=2") == []
    assert refused(TINY, *two, "model.pipeline_model_parallel_size=2") == []


@pytest.mark.parametrize(
    ("base", "overrides", "key", "remedy"),
    [
        ({}, ["trainer.devices=4", "model.tensor_model_parallel_size=4"], "2 key and value heads", "write 2"),
        (
            {"num_attention_heads": 9, "num_query_groups": 3, "ffn_hidden_size": 1536},  # SmolLM2-135M
            ["trainer.devices=2", "model.tensor_model_parallel_size=2"],
            "9 attention heads and 3 key and value heads",
            "write 1",
        ),
        ({"num_layers": 30}, ["trainer.devices=4", "model.pipeline_model_parallel_size=4"], "30 layers", "write 3"),
        (
            {"position_embedding_type": "learned_absolute"},
            ["model.encoder_seq_length=4096"],
            "2048 pos",
            "at most 2048",
        ),
        ({}, ["model.peft.lora_tuning.layer_selection=[1,3]"], "layer_selection=3", "name layers"),
        ({"tokenizer": {"type": "nemo:words"}}, [], "nemo:words and does not hold it", "convert"),
        ({"tokenizer": {"type": "/no/such/folder"}}, [], "model.tokenizer.type=/no/such/folder", "convert"),
    ],
)
def test_what_the_base_model_does_not_allow(
    refused: Any, base: dict[str, Any], overrides: list[str], key: str, remedy: str
) -> None:
    found = refused({**TINY, **base}, *overrides)
    assert len(found) == 1 and key in found[0] and remedy in found[0], found


def test_a_tokenizer_that_is_not_inside(refused: Any) -> None:
    (found,) = refused(TINY, without="tokenizer/")
    assert "names a tokenizer nemo:tokenizer and does not hold it" in found


def test_a_tokenizer_named_by_the_trial_counts(composed: Any, workspace: Path) -> None:
    base = {**TINY, "tokenizer": {"type": "/no/such/folder"}}
    config, _ = base, None
    write_described(workspace / "m.nemo", config, 10)
    loaded = base_model.load(workspace / "m.nemo")
    assert loaded is not None
    tokenizer = {"model.tokenizer": {"type": str(workspace)}}
    trial = changed(composed("model=tiny")[0], tokenizer, frozenset(tokenizer))
    assert base_model._tokenizer(loaded, trial) == []
    pyxis = {"cluster.container": {"runtime": "pyxis"}}  # paths inside the container are not known here
    assert base_model._tokenizer(loaded, changed(composed("model=tiny")[0], pyxis)) == []


def test_warnings(composed: Any, workspace: Path) -> None:
    hub = {**TINY, "tokenizer": {"library": "huggingface", "type": "meta-llama/Meta-Llama-3-8B"}}
    write_described(workspace / "models" / "tiny.nemo", hub, 1024)
    config, _ = composed("model=tiny", "model.encoder_seq_length=4096")
    long, name = (str(f) for f in preflight.warnings([PlannedTrial([], config)] * 3, workspace / "runs" / "s"))
    assert long.startswith("model.encoder_seq_length=4096: the base model was trained on 2048 positions")
    assert "Hugging Face's hub" in name


def test_a_small_archive_that_claims_to_hold_much_is_not_unpacked(tmp_path: Path) -> None:
    """10 kB can hold gigabytes of zeros, and brackets nested without end."""
    big = 20 << 20
    with tarfile.open(tmp_path / "m.nemo", "w:gz") as archive:
        for name, content in (("model_config.yaml", b"\0" * big), ("tokenizer/config.json", b"[" * 100_000)):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert (tmp_path / "m.nemo").stat().st_size < 100_000
    base = base_model.load(tmp_path / "m.nemo")
    assert base is not None and (base.config, base.vocabulary) == ({}, None)
    with tarfile.open(tmp_path / "many.nemo", "w") as archive:
        for number in range(150):
            archive.addfile(tarfile.TarInfo(f"./tokenizer/{number}.json"))
    with pytest.raises(Refused, match="more than 100 files"):
        nemo_file.unpack_tokenizer(tmp_path / "many.nemo", tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_how_its_maker_divided_his_work_is_no_matter_of_a_trial(composed: Any, workspace: Path) -> None:
    config, _ = composed("model=tiny")
    made = {**TINY, "sequence_parallel": True, "context_parallel_size": 2}
    base = base_model.load(write_described(workspace / "models" / "tiny.nemo", made, 1024))
    assert base is not None
    model = base.under(config)
    assert (model["sequence_parallel"], model.get("context_parallel_size")) == (False, 1)
    config, _ = composed("model=tiny", "+model.sequence_parallel=true")
    assert base.under(config)["sequence_parallel"]
