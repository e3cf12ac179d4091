"""Weights in Megatron's layouts and checkpoint format are those of the Hugging Face folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.models import small_models
from data_prep.models.hf_folder import open_folder
from data_prep.models.llama_shape import read_shape
from data_prep.models.nemo_config import model_config
from launcher.nemo import nemo_file
from tests.unit.llama import new_nemo

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return small_models.ensure("tiny", tmp_path_factory.mktemp("hf"))


def test_fused_qkv_is_ordered_by_query_group():
    """4 heads in 2 groups, one row a head: q0 q1 k0 v0, q2 q3 k1 v1."""
    from data_prep.models.megatron_weights import fuse_qkv

    query = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    key, value = torch.tensor([[10.0], [11.0]]), torch.tensor([[20.0], [21.0]])
    assert fuse_qkv(query, key, value, groups=2).ravel().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


@given(groups=st.integers(1, 4), per_group=st.integers(1, 4), head_dim=st.integers(1, 6), hidden=st.integers(1, 5))
def test_fused_qkv_round_trip(groups, per_group, head_dim, hidden):
    from data_prep.models.megatron_weights import fuse_qkv, split_qkv

    heads = groups * per_group
    query, key, value = (torch.randn(n * head_dim, hidden) for n in (heads, groups, groups))
    fused = fuse_qkv(query, key, value, groups)
    for got, want in zip(split_qkv(fused, heads, groups), (query, key, value), strict=True):
        assert torch.equal(got, want)


def written(hf: Path, folder: Path, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Write the model's weights, and read them back with PyTorch's own reader, whole."""
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file

    from data_prep.models.megatron_weights import write_weights
    from data_prep.models.torch_dist import CheckpointWriter

    weights = load_file(hf / "model.safetensors")
    layers = []

    def read(name: str, first: int, end: int) -> torch.Tensor:
        return weights[name][first:end]

    write_weights(read_shape(hf), read, CheckpointWriter(new_nemo(folder), dtype), layers.append)
    folder /= nemo_file.WEIGHTS
    assert layers == [0, 1]
    index = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: entry for key, entry in index.items() if "_extra_state" not in key}
    state = {key: torch.full(entry.size, math.nan, dtype=entry.properties.dtype) for key, entry in tensors.items()}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return state


def test_weights_written_are_those_read(tiny, tmp_path):
    from safetensors.torch import load_file

    from data_prep.models.megatron_weights import split_qkv

    hf, state = load_file(tiny / "model.safetensors"), written(tiny, tmp_path / "weights")
    layers = "model.decoder.layers."
    for index in range(2):
        of = {name.split(".", 3)[3]: weight for name, weight in hf.items() if f"layers.{index}." in name}
        fused = state[f"{layers}self_attention.linear_qkv.weight"][index]
        for got, name in zip(split_qkv(fused, 4, 2), "qkv", strict=True):
            assert torch.equal(got, of[f"self_attn.{name}_proj.weight"])
        gate_then_up = torch.cat([of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]])
        assert torch.equal(state[f"{layers}mlp.linear_fc1.weight"][index], gate_then_up)
        plain = {
            "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
            "mlp.linear_fc2.weight": "mlp.down_proj.weight",
            "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
            "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
        }
        assert all(torch.equal(state[layers + ours][index], of[theirs]) for ours, theirs in plain.items())
    assert torch.equal(state["model.embedding.word_embeddings.weight"], hf["model.embed_tokens.weight"])
    assert torch.equal(state["model.decoder.final_layernorm.weight"], hf["model.norm.weight"])
    assert torch.equal(state["model.output_layer.weight"], hf["lm_head.weight"])


def test_embeddings_are_written_in_pieces(tiny, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from data_prep.models import megatron_weights

    monkeypatch.setattr(megatron_weights, "_ROWS", 100)
    state = written(tiny, tmp_path / "weights")
    hf = load_file(tiny / "model.safetensors")
    assert torch.equal(state["model.embedding.word_embeddings.weight"], hf["model.embed_tokens.weight"])
    assert torch.equal(state["model.output_layer.weight"], hf["lm_head.weight"])


def test_tied_model_has_no_output_layer(tmp_path):
    (tmp_path / "hf").mkdir()
    small_models.write_random_llama(tmp_path / "hf", tie_word_embeddings=True)
    assert "model.output_layer.weight" not in written(tmp_path / "hf", tmp_path / "weights")
    shape = open_folder(tmp_path / "hf").shape
    assert model_config(shape, shape.vocab, "32")["share_embeddings_and_output_weights"] is True


def test_bf16_is_rounded_once(tiny, tmp_path):
    from safetensors.torch import load_file

    state = written(tiny, tmp_path / "weights", torch.bfloat16)
    want = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"].bfloat16()
    assert torch.equal(state["model.embedding.word_embeddings.weight"], want)
