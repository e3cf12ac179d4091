"""A .nemo back as a Hugging Face folder: the weights bit for bit, a config.json that says the same; what is refused."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import convert_checkpoint
from data_prep.models import nemo_config, small_models
from data_prep.models.hf_folder import open_folder
from data_prep.models.llama_shape import LLAMA31 as LLAMA31_SCALING
from data_prep.models.llama_shape import read_shape
from launcher.findings import Refused
from launcher.nemo import nemo_file
from tests.unit.llama import pack

torch = pytest.importorskip("torch")

from data_prep.models import nemo_to_hf, safetensors_writer  # noqa: E402
from data_prep.models.torch_dist import CheckpointReader  # noqa: E402

VARIANTS = {
    "untied, grouped queries": {},
    "tied": {"tie_word_embeddings": True},
    "multi-query": {"num_key_value_heads": 1},
    "llama 3.1 rope": {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA31_SCALING._asdict()}},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "wide heads": {"head_dim": 32},
    "more rows than tokens": {"vocab_size": 1100},
    "bf16": {"dtype": "bfloat16"},
    "qwen 2.5": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6},
    "mistral": {"model_type": "mistral", "rope_theta": 1e6},
}


@pytest.fixture
def llama(tmp_path):
    """llama(**config) -> (the folder of a random HF Llama, its .nemo)."""

    def make(**config) -> tuple[Path, Path]:
        folder = tmp_path / "llama"
        folder.mkdir()
        small_models.write_random_llama(folder, **config)
        return folder, convert_checkpoint.convert(str(folder), tmp_path / "llama.nemo", verify=False)

    return make


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    found: dict = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype
        assert torch.equal(weight.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_there_and_back(llama, tmp_path, config):
    folder, nemo = llama(**config)
    back = nemo_to_hf.convert(nemo, tmp_path / "back")
    assert_same(folder, back)
    assert (back / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (back / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_config_made_where_there_is_no_original(llama, tmp_path, config):
    """As of NeMo's own converter, whose files hold no config.json."""
    folder, nemo = llama(**config)
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(nemo_to_hf.hf_config(nemo_to_hf.open_nemo(nemo).shape)))
    assert read_shape(made) == read_shape(folder)


def test_config_that_says_otherwise_is_not_believed(llama, tmp_path):
    """model_config.yaml is what NeMo trained with; the folder's own copy is only kept where it agrees."""
    folder, nemo = llama()
    unpacked = tmp_path / "unpacked"
    with tarfile.open(nemo) as archive:
        archive.extractall(unpacked, filter="data")
    config = unpacked / nemo_file.CONFIG
    config.write_text(config.read_text().replace("rotary_base: 10000.0", "rotary_base: 20000.0"))
    pack(unpacked, tmp_path / "other.nemo")
    back = nemo_to_hf.convert(tmp_path / "other.nemo", tmp_path / "back")
    assert read_shape(back) == replace(read_shape(folder), rope_theta=20000.0)
    assert json.loads((back / "config.json").read_text())["eos_token_id"] == 1


def test_tokenizer_where_the_file_names_a_folder(llama, tmp_path):
    """NeMo's own converter puts no tokenizer into the file."""
    folder, nemo = llama()
    unpacked = tmp_path / "unpacked"
    with tarfile.open(nemo) as archive:
        archive.extractall(unpacked, filter="data")
    for file in (unpacked / nemo_file.TOKENIZER_FOLDER).iterdir():
        file.unlink()
    config = unpacked / nemo_file.CONFIG
    named = config.read_text().replace(nemo_config.TOKENIZER_INSIDE, str(folder))
    config.write_text(named)
    assert_same(folder, nemo_to_hf.convert(unpacked, tmp_path / "back"))
    assert (tmp_path / "back" / "tokenizer.json").exists()
    config.write_text(named.replace(str(folder), str(tmp_path / "gone")))
    pack(unpacked, tmp_path / "other.nemo")
    with pytest.raises(Refused, match="holds no tokenizer"):
        nemo_to_hf.convert(tmp_path / "other.nemo", tmp_path / "again")


def test_an_unpacked_file_stays_as_it_is(llama, tmp_path):
    folder, nemo = llama()
    unpacked = tmp_path / "unpacked"
    with tarfile.open(nemo) as archive:
        archive.extractall(unpacked, filter="data")
    before = {path: path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    assert_same(folder, nemo_to_hf.convert(unpacked, tmp_path / "back"))
    assert {path: path.read_bytes() for path in unpacked.rglob("*") if path.is_file()} == before


def test_several_shards(llama, tmp_path, monkeypatch):
    folder, nemo = llama()
    monkeypatch.setattr(safetensors_writer, "SHARD_BYTES", 300_000)
    back = nemo_to_hf.convert(nemo, tmp_path / "back")
    shards = sorted(back.glob("model-*.safetensors"))
    assert len(shards) >= 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * open_folder(folder).shape.parameters
    assert_same(folder, back)


def test_tensors_out_of_turn_are_no_file(tmp_path):
    writer = safetensors_writer.SafetensorsWriter(tmp_path, {"a": (2,), "b": (2,)}, torch.float32)
    with pytest.raises(ValueError, match="expected a .2,."):
        writer.add("b", torch.ones(2))
    writer = safetensors_writer.SafetensorsWriter(tmp_path, {"a": (2,), "b": (2,)}, torch.float32)
    writer.add("a", torch.ones(2))
    with pytest.raises(ValueError, match="1 tensors are missing, first b"):
        writer.close()


def test_regions_are_put_together_from_pieces(llama):
    folder, nemo = llama()
    reader = CheckpointReader(nemo)
    fused = reader.region("model.decoder.layers.mlp.linear_fc1.weight", (1, 150, 3), (1, 20, 5))[0]
    of = weights(folder)
    whole = torch.cat([of[f"model.layers.1.mlp.{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.equal(fused, whole[150:170, 3:8])
    with pytest.raises(Refused, match="has 10 of 15 values"):
        reader.region("model.decoder.final_layernorm.weight", (54,), (15,))


def command(*words) -> int:
    return convert_checkpoint.main(["--to", "hf", *map(str, words)])


def test_refusals(llama, tmp_path, capsys):
    folder, nemo = llama()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("precious")
    for words, said in {
        (nemo,): "name the folder to write",
        (nemo, taken, "--force"): "with other files in it",
        (folder / "config.json", tmp_path / "back"): "is not a readable .nemo",
        (nemo, tmp_path / "back", "--precision", "32"): "only with --to nemo",
        (nemo, tmp_path / "back", "--no-verify"): "only with --to nemo",
    }.items():
        assert command(*words) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
    assert (taken / "thesis.tex").read_text() == "precious"
    assert command(nemo, tmp_path / "back") == 0
    assert command(nemo, tmp_path / "back") == 2
    assert "--force to replace it" in capsys.readouterr().err
    assert command(nemo, tmp_path / "back", "--force") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "llama", "llama.nemo", "taken"]


def test_another_architecture_is_refused(llama):
    shape = nemo_to_hf.shape_of
    config = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1}
    with pytest.raises(Refused, match="activation=gelu: is not a Llama's"):
        shape(Path("x.nemo"), {**config, "activation": "gelu"}, 8)
    with pytest.raises(Refused, match="num_layers: missing"):
        shape(Path("x.nemo"), {key: value for key, value in config.items() if key != "num_layers"}, 8)


def test_weights_of_another_format_are_refused(llama, tmp_path):
    _, nemo = llama()
    unpacked = tmp_path / "unpacked"
    with tarfile.open(nemo) as archive:
        archive.extractall(unpacked, filter="data")
    (unpacked / nemo_file.WEIGHTS / ".metadata").unlink()
    with pytest.raises(Refused, match="no distributed checkpoint"):
        nemo_to_hf.open_nemo(unpacked)
