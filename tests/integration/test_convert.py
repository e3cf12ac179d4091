"""Conversions proved by NeMo itself: its model, restored from the file, gives HF's logits; wrong ones are found out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep import convert_checkpoint
from data_prep.models import megatron_weights, nemo_config, proof, small_models
from data_prep.models.hf_folder import open_folder
from data_prep.models.llama_shape import LLAMA31 as LLAMA31_SCALING
from data_prep.models.nemo_writer import NemoWriter
from launcher.nemo import nemo_file

pytest.importorskip("nemo")
pytestmark = pytest.mark.nemo

LLAMA31 = {"rope_type": "llama3", **LLAMA31_SCALING._asdict()}
VARIANTS = {
    "untied, grouped queries": {},
    "tied": {"tie_word_embeddings": True},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "llama 3": {"rope_theta": 500000.0},
    "llama 3.1 rope": {"rope_theta": 500000.0, "rope_scaling": LLAMA31},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "wide heads": {"head_dim": 32},
    "three heads": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
    "more rows than tokens": {"vocab_size": 1100},
    "bf16": {"dtype": "bfloat16"},
    "llama 3.2 rope": {"rope_theta": 500000.0, "rope_scaling": LLAMA31 | {"factor": 32.0}},
    "written by transformers 5": {
        "rope_theta": None,
        "rope_parameters": {"rope_theta": 500000.0} | LLAMA31 | {"factor": 32.0},
        "transformers_version": "5.2.0",
    },
    "qwen 2.5, tied": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6},
    "qwen 2.5, untied, bf16": {"model_type": "qwen2", "rope_theta": 1e6, "dtype": "bfloat16"},
    "mistral 7b v0.3": {"model_type": "mistral", "rope_theta": 1e6, "max_position_embeddings": 32768},
}


@pytest.fixture(scope="module")
def prover():
    with proof.Prover() as running:
        yield running


@pytest.fixture
def llama(tmp_path):
    """llama(**config) -> the folder of a random HF Llama."""

    def make(**config) -> Path:
        folder = tmp_path / "llama"
        folder.mkdir()
        small_models.write_random_llama(folder, **config)
        return folder

    return make


@pytest.mark.parametrize("whole", [2 << 30, 0], ids=["whole", "by layer"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_variant_is_proved(llama, prover, tmp_path, config, whole, monkeypatch):
    monkeypatch.setattr(convert_checkpoint, "WHOLE", whole)
    made = convert_checkpoint.convert(str(llama(**config)), tmp_path / "made.nemo", prover=prover)
    record = nemo_file.read_record(made)
    assert record["proof"]["difference"] <= record["proof"]["tolerance"] == proof.TOLERANCE
    assert record["proof"]["tokens"] > 200
    assert record["precision"] == ("bf16" if "dtype" in config else "32")


def test_stored_in_bf16_from_fp32(llama, prover, tmp_path):
    made = convert_checkpoint.convert(str(llama()), tmp_path / "made.nemo", precision="bf16", prover=prover)
    assert nemo_file.read_record(made)["proof"]["difference"] <= proof.TOLERANCE


def test_sentencepiece_tokenizer_of_llama_2(llama, prover, tmp_path):
    """A folder with tokenizer.model only, as Meta's Llama 2 has it."""
    import io

    import sentencepiece

    folder = llama(vocab_size=320)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([proof.TEXT] * 20),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    made = convert_checkpoint.convert(str(folder), tmp_path / "made.nemo", prover=prover)
    assert nemo_file.read_record(made)["proof"]["tokens"] > 100


def wrong_qkv(query, key, value, groups):
    import torch

    return torch.cat([query, key, value])  # not by query group


def one_weight_off(query, key, value, groups, _right=megatron_weights.fuse_qkv):
    fused = _right(query, key, value, groups)
    fused[5, -1] += 0.5
    return fused


def bias_lost(query, key, value, groups, _right=megatron_weights.fuse_qkv):
    fused = _right(query, key, value, groups)
    return fused * 0 if fused.shape[1] == 1 else fused


MISTAKES = {
    "qkv not interleaved": (megatron_weights, "fuse_qkv", wrong_qkv),
    "one weight off": (megatron_weights, "fuse_qkv", one_weight_off),
    "bias lost": (megatron_weights, "fuse_qkv", bias_lost),
    "rope scaling lost": (
        nemo_config,
        "rotary_config",
        lambda shape, right=nemo_config.rotary_config: right(shape) | {"scale_positional_embedding": False},
    ),
    "rope base lost": (
        nemo_config,
        "rotary_config",
        lambda shape, right=nemo_config.rotary_config: right(shape) | {"rotary_base": 10000.0},
    ),
}


@pytest.mark.parametrize("whole", [2 << 30, 0], ids=["whole", "by layer"])
@pytest.mark.parametrize("field", [{"rope_theta": 10000.0}, {"rope_scaling": None}], ids=["theta", "scaling"])
def test_a_config_misread_by_both_sides_fails(llama, prover, tmp_path, monkeypatch, field, whole):
    """As transformers 4.48 reads a config of transformers 5: the proof reads its text by itself."""
    monkeypatch.setattr(convert_checkpoint, "WHOLE", whole)
    folder = llama(rope_theta=None, rope_parameters={"rope_theta": 500000.0} | LLAMA31)
    opened = open_folder(folder)
    misread = replace(opened, shape=replace(opened.shape, **field))
    monkeypatch.setattr(convert_checkpoint, "open_folder", lambda path: misread)
    with pytest.raises(proof.Failed, match="logits differ from HF's by up to"):
        convert_checkpoint.convert(str(folder), tmp_path / "out" / "made.nemo", prover=prover)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("whole", [2 << 30, 0], ids=["whole", "by layer"])
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_wrong_conversion_fails_and_leaves_no_file(llama, prover, tmp_path, monkeypatch, mistake, whole):
    monkeypatch.setattr(convert_checkpoint, "WHOLE", whole)
    folder = llama(rope_theta=500000.0, rope_scaling=LLAMA31, model_type="qwen2")
    monkeypatch.setattr(*mistake)
    with pytest.raises(proof.Failed, match="logits differ from HF's by up to"):
        convert_checkpoint.convert(str(folder), tmp_path / "out" / "made.nemo", prover=prover)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("whole", [2 << 30, 0], ids=["whole", "by layer"])
def test_weights_damaged_on_the_way_fail_the_proof(llama, prover, tmp_path, monkeypatch, whole):
    """What is proved is the file itself: one byte of a weight inside it, changed, is noticed."""
    monkeypatch.setattr(convert_checkpoint, "WHOLE", whole)
    right = NemoWriter.close

    def spoiled(writer):
        right(writer)
        with tarfile.open(writer.path) as archive:
            layer = archive.getmember("./model_weights/__0_1.distcp")
        with writer.path.open("r+b") as file:
            place = layer.offset_data + (layer.size // 2 + 3 | 3)
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 0x7F]))  # the exponent of a float

    monkeypatch.setattr(NemoWriter, "close", spoiled)
    with pytest.raises(proof.Failed):
        convert_checkpoint.convert(str(llama()), tmp_path / "out" / "made.nemo", prover=prover)
    assert list((tmp_path / "out").iterdir()) == []


def test_prover_outlives_a_failure(llama, prover, tmp_path):
    """After the mistakes above, the same process still proves what is right."""
    convert_checkpoint.convert(str(llama()), tmp_path / "made.nemo", prover=prover)


def test_command_makes_tiny_once(tmp_path):
    """The command as a user runs it, in a folder with a space; the second call answers at once, without torch."""
    here = tmp_path / "a folder"
    here.mkdir()
    command = [sys.executable, convert_checkpoint.__file__, "tiny"]
    first = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "proved on" in first.stdout
    nemo = here / "models" / "tiny.nemo"
    assert nemo_file.read_record(nemo)["proof"]
    before = nemo.stat().st_mtime_ns
    told = [command[0], "-X", "importtime", *command[1:]]
    second = subprocess.run(told, cwd=here, capture_output=True, text=True, env={**os.environ, "PATH": ""})
    assert second.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in second.stderr.splitlines()}
    assert "launcher.findings" in imported and not imported & {"torch", "nemo"}
    assert "exists already" in second.stdout
    assert nemo.stat().st_mtime_ns == before


RANK = """
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from launcher.train.nemo_aligner import standins
standins.install()
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from nemo.collections.nlp.models.language_modeling.megatron_gpt_model import MegatronGPTModel
from nemo.collections.nlp.parts.nlp_overrides import NLPDDPStrategy, NLPSaveRestoreConnector
from omegaconf import OmegaConf

nemo, weights, tokenizer, out = sys.argv[1:]
trainer = Trainer(accelerator="cpu", devices=2, precision=32, strategy=NLPDDPStrategy(), logger=False,
                  plugins=[TorchElasticEnvironment()], enable_checkpointing=False)
connector = NLPSaveRestoreConnector()
config = MegatronGPTModel.restore_from(nemo, trainer=trainer, return_config=True, save_restore_connector=connector)
OmegaConf.set_struct(config, False)
config.tokenizer.type = tokenizer
config.update(precision=32, use_cpu_initialization=True, tensor_model_parallel_size=2)
model = MegatronGPTModel.restore_from(nemo, trainer=trainer, override_config_path=config,
                                      save_restore_connector=connector).eval()
ids = torch.arange(0, 1024, 4)[None]
size = ids.shape[1]
mask = torch.ones(1, 1, size, size, dtype=torch.bool).triu(1)
with torch.no_grad():
    logits = model(ids, torch.arange(size)[None], mask, None)[0]
torch.save(logits.float(), f"{out}/logits{torch.distributed.get_rank()}.pt")

# What Transformer Engine's modules ask for besides, in the names Megatron gives it.
modules = [f"model.decoder.layers.{name}" for name in ("self_attention.linear_qkv", "self_attention.core_attention",
           "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")]
asked = {f"{name}{at}": ShardedObject(f"{name}._extra_state", None, (2,), (at,), (0, torch.distributed.get_rank(), 0))
         for name in modules for at in range(2)}
asked["norm"] = ShardedObject("model.decoder.final_layernorm._extra_state", None, (1,), (0,),
                              (0, torch.distributed.get_rank(), 0))
got = dist_checkpointing.load(asked, weights)
assert len(got) == 11 and set(got.values()) == {None}, got
"""


def test_tensor_parallel_ranks_load_their_halves(llama, tmp_path):
    """Two processes, each with half of every layer, give HF's logits; and what Transformer Engine asks for is there."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = llama(rope_theta=500000.0, rope_scaling=LLAMA31)
    nemo = convert_checkpoint.convert(str(folder), tmp_path / "made.nemo", verify=False)
    with tarfile.open(nemo) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GROUP_RANK": "0"}
    env |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "test", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", RANK, nemo, tmp_path / "unpacked" / "model_weights", folder, tmp_path]
    ranks = [
        subprocess.Popen(
            list(map(str, command)),
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)[-3000:]
    halves = [torch.load(tmp_path / f"logits{rank}.pt") for rank in range(2)]
    assert halves[0].shape == (256, 512)
    hf = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = hf(torch.arange(0, 1024, 4)[None]).logits[0]
    assert proof.verdict(torch.cat(halves, dim=-1), expected)["difference"] < proof.TOLERANCE
