"""The parts of a conversion: NeMo's config, what is refused, the file and the command."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import convert_checkpoint, scratch
from data_prep.models import hf_to_nemo, small_models
from data_prep.models.hf_folder import open_folder, read_header
from data_prep.models.llama_shape import LLAMA31 as LLAMA31_SCALING
from data_prep.models.llama_shape import read_shape
from data_prep.models.nemo_config import TOKENIZER_INSIDE, model_config, vocab_divisor
from launcher.check.files import check_nemo
from launcher.findings import Refused
from launcher.nemo import nemo_file

torch = pytest.importorskip("torch")
ROOT = Path(convert_checkpoint.__file__).parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """A random Llama of one's own, to spoil."""
    path = tmp_path / "llama"
    path.mkdir()
    small_models.write_random_llama(path)
    return path


def edit(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(Refused) as refused:
        call(*args, **kwargs)
    return str(refused.value)


# --- NeMo's config ----------------------------------------------------------------------------------------------------


def test_config_holds_no_path_of_this_machine(folder):
    config = model_config(read_shape(folder), 1024, "bf16")
    assert config["tokenizer"]["type"] == TOKENIZER_INSIDE == "nemo:tokenizer"
    assert str(folder) not in json.dumps(config)
    assert config["precision"] == "bf16"
    assert (config["num_query_groups"], config["kv_channels"], config["activation"]) == (2, 16, "fast-swiglu")


LLAMA31 = {"rope_type": "llama3"} | LLAMA31_SCALING._asdict()


@pytest.mark.parametrize(
    ("rope", "scaled", "linear"),
    [(None, False, None), (LLAMA31, True, None), ({"type": "linear", "factor": 4.0}, False, 4.0)],
    ids=["none", "llama3.1", "linear"],
)
def test_rotary_config(folder, rope, scaled, linear):
    edit(folder, rope_scaling=rope, rope_theta=500000.0)
    config = model_config(read_shape(folder), 1024, "32")
    assert config["scale_positional_embedding"] is scaled
    assert config["seq_len_interpolation_factor"] == linear
    assert config["rotary_base"] == 500000.0


ROPES = [None, LLAMA31, LLAMA31 | {"factor": 32.0}, {"rope_type": "linear", "factor": 4.0}]


def in_new_dress(folder: Path) -> None:
    """The folder's config.json as transformers 5 writes it."""
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_scaling") or {"rope_type": "default"}
    config["rope_parameters"] = {"rope_theta": config.pop("rope_theta"), **rope}
    config["dtype"] = config.pop("torch_dtype")
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "5.2.0"}))


@pytest.mark.parametrize("rope", ROPES, ids=["none", "llama3.1", "llama3.2", "linear"])
def test_both_dresses_of_a_config_are_read_alike(folder, rope):
    edit(folder, rope_scaling=rope, rope_theta=500000.0, torch_dtype="bfloat16")
    old = read_shape(folder)
    in_new_dress(folder)
    assert read_shape(folder) == old
    assert (old.rope_theta, old.dtype) == (500000.0, "bfloat16")
    edit(folder, rope_theta=500000.0, rope_scaling=rope, torch_dtype="bfloat16")  # both, which agree
    assert read_shape(folder) == old


def test_a_scaling_that_nemo_does_not_know_is_carried_in_the_config(folder):
    edit(folder, rope_scaling=LLAMA31 | {"factor": 32.0})
    config = model_config(read_shape(folder), 1024, "32")
    assert config["scale_positional_embedding"] is False  # which would be Llama 3.1's factor 8
    assert config["rope_scaling"] == LLAMA31_SCALING._asdict() | {"factor": 32.0}
    edit(folder, rope_scaling=LLAMA31)
    assert "rope_scaling" not in model_config(read_shape(folder), 1024, "32")


@pytest.mark.parametrize("dress", ["old", "new"])
@pytest.mark.parametrize("rope", ROPES, ids=["none", "llama3.1", "llama3.2", "linear"])
def test_the_proofs_frequencies_are_those_of_transformers(folder, rope, dress):
    """Of the installed transformers, which reads the old dress right."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from data_prep.models.proof_rope import frequencies

    edit(folder, rope_scaling=rope, rope_theta=500000.0)
    expected = LlamaRotaryEmbedding(transformers.LlamaConfig.from_pretrained(folder)).inv_freq
    if dress == "new":
        in_new_dress(folder)
    assert torch.allclose(frequencies(folder), expected, rtol=1e-6, atol=0)


def test_a_tokenizer_of_transformers_5_is_written_for_4(folder, tmp_path):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    new = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|x|>"], "backend": "tokenizers"}
    file.write_text(json.dumps(config | new))
    (tmp_path / "copy").mkdir()
    open_folder(folder).copy_tokenizer(tmp_path / "copy")
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|x|>"]
    assert "extra_special_tokens" not in written
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["consolidated.00.pth", "params.json"], "Meta's own format; convert it with"),
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter without its base model; merge"),
        (["model.Q4_K_M.gguf"], "GGUF"),
    ],
)
def test_folders_of_other_kinds_are_named(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_text("")
    assert words in refusal(open_folder, tmp_path)


def test_the_hubs_cache_is_named_with_the_folder_to_give(tmp_path):
    state = tmp_path / "models--meta-llama--Llama-3.2-1B" / "snapshots" / "abc"
    state.mkdir(parents=True)
    said = refusal(open_folder, state.parents[1])
    assert "meta-llama/Llama-3.2-1B" in said
    assert str(state) in said
    assert "several" in refusal(open_folder, tmp_path)


def test_a_git_lfs_pointer_is_named(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    assert "git lfs pull" in refusal(open_folder, folder)


@pytest.mark.parametrize(
    ("vocab", "tokens", "divisor"),
    [
        (128256, 128256, 32),
        (32000, 32000, 32),
        (49152, 49152, 128),
        (1024, 1024, 128),
        (50257, 50257, 1),
        (32064, 32001, 64),
    ],
    ids=["llama3", "llama2", "smollm2", "tiny", "odd", "fewer tokens than rows"],
)
def test_vocabulary_divisor(vocab, tokens, divisor):
    assert vocab_divisor(vocab, tokens) == divisor


@given(vocab=st.integers(1, 5000), fewer=st.integers(0, 600))
def test_nemo_pads_the_vocabulary_to_exactly_the_embedding(vocab, fewer):
    tokens = max(1, vocab - fewer)
    divisor = vocab_divisor(vocab, tokens)
    assert math.ceil(tokens / divisor) * divisor == vocab


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ValueError, match="1025 tokens, the embedding 1024 rows"):
        vocab_divisor(1024, 1025)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, "MixtralForCausalLM: unsupported"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}, "Qwen3ForCausalLM: .*Qwen2.5 and Mistral"),
        ({"architectures": ["MistralForCausalLM"], "model_type": "llama"}, "MistralForCausalLM: unsupported"),
        ({"architectures": None, "model_type": "mistral"}, "sliding_window=4096: .* null in config.json"),
        ({"architectures": None, "model_type": "mistral", "sliding_window": 128}, "sliding_window=128"),
        (
            {"architectures": None, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128},
            "sliding_window=128",
        ),
        (
            {"architectures": None, "model_type": "qwen2"},
            "6 weights are missing, first model.layers.0.self_attn.k_proj.b",
        ),
        ({"architectures": None, "model_type": "qwen2", "num_key_value_heads": None}, "num_key_value_heads=None: must"),
        ({"model_type": "gpt2", "architectures": None}, "unsupported architecture"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_scaling": LLAMA31 | {"factor": None}}, "factor=None: is not a positive number"),
        ({"rope_parameters": "llama3"}, "rope_parameters=llama3: is not an object"),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}, "rope_theta=10000.0: disagrees with"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type=yarn"),
        ({"partial_rotary_factor": 0.5}, "only part of each head is rotated"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "torch_dtype=float32: disagrees with dtype"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type=yarn"),
        ({"rope_scaling": {"type": "linear"}}, "factor=None"),
        ({"rope_scaling": "linear"}, "is not an object"),
        ({"hidden_size": "64"}, "hidden_size=64: must be a positive whole number"),
        ({"rope_theta": -1}, "rope_theta=-1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: does not divide"),
        ({"num_hidden_layers": 3}, "9 weights are missing, first model.layers.2"),
        ({"num_hidden_layers": 1}, "9 weights .*, first model.layers.1"),
        ({"intermediate_size": 128}, r"has shape \(160, 64\), but \(128, 64\) by config.json"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_config_that_cannot_be_converted(folder, changes, said):
    import re

    edit(folder, **changes)
    assert re.search(said, refusal(open_folder, folder))


def test_all_findings_come_at_once(folder):
    edit(folder, attention_bias=True, hidden_act="gelu")
    assert len(refusal(open_folder, folder).splitlines()) == 2


def test_tied_folder_may_bring_an_output_layer(folder):
    edit(folder, tie_word_embeddings=True)
    assert "lm_head.weight" not in open_folder(folder).files


@pytest.mark.parametrize("spoil", ["missing", "no json", "a list"])
def test_bad_config(folder, spoil):
    file = folder / "config.json"
    file.unlink() if spoil == "missing" else file.write_text({"no json": "{", "a list": "[]"}[spoil])
    assert str(file) in refusal(open_folder, folder)


def test_missing_tokenizer_and_missing_weights_are_both_named(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    said = refusal(open_folder, folder)
    assert "no tokenizer.json" in said
    assert "no model*.safetensors" in said


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1], ids=lambda keep: f"{keep} bytes")
def test_truncated_safetensors(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated" in refusal(open_folder, folder)


def test_file_that_is_no_safetensors(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 5) + b"hello")
    assert "is not a safetensors file" in refusal(read_header, file)


def test_sharded_folder_with_a_lost_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = read_header(folder / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert len(open_folder(folder).files) == len(names)
    places["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": places}))
    assert "model-00002-of-00002.safetensors" in refusal(open_folder, folder)


def test_fingerprint_sees_config_tokenizer_and_weights(folder):
    first = open_folder(folder).fingerprint()
    assert open_folder(folder).fingerprint() == first
    seen = {first}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        file = folder / name
        content = bytearray(file.read_bytes())
        content[-1 if name == "model.safetensors" else content.rindex(b"1")] ^= 1
        file.write_bytes(content)
        seen.add(open_folder(folder).fingerprint())
    assert len(seen) == 4


# --- The file and the command -----------------------------------------------------------------------------------------


@pytest.fixture
def nemo(folder, tmp_path) -> Path:
    return convert_checkpoint.convert(str(folder), tmp_path / "out" / "model.nemo", verify=False)


def run(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = ROOT / "data_prep" / "convert_checkpoint.py"
    return subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_file_is_whole_and_alone(nemo):
    assert check_nemo(nemo) == []
    assert list(nemo.parent.iterdir()) == [nemo]
    with tarfile.open(nemo) as archive:
        names = archive.getnames()
    assert names[0] == "./conversion.json"
    assert {"./model_config.yaml", "./tokenizer/tokenizer.json", "./model_weights/metadata.json"} <= set(names)


def test_tokenizer_comes_out_as_it_went_in(nemo, folder, tmp_path):
    out = nemo_file.unpack_tokenizer(nemo, tmp_path / "trial" / "tokenizer")
    assert out.is_absolute()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert nemo_file.unpack_tokenizer(nemo, out) == out
    assert [path.name for path in out.parent.iterdir()] == ["tokenizer"]


def test_unpacked_nemo_serves_as_well(nemo, tmp_path):
    with tarfile.open(nemo) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert nemo_file.unpack_tokenizer(tmp_path / "unpacked", tmp_path / "no") == tmp_path / "unpacked" / "tokenizer"
    assert nemo_file.read_record(tmp_path / "unpacked") == nemo_file.read_record(nemo)


def test_nemo_without_a_tokenizer_is_refused(tmp_path):
    with tarfile.open(tmp_path / "other.nemo", "w") as archive:
        archive.addfile(tarfile.TarInfo("./model_config.yaml"))
    said = refusal(nemo_file.unpack_tokenizer, tmp_path / "other.nemo", tmp_path / "tokenizer")
    assert "holds no tokenizer" in said
    assert not (tmp_path / "tokenizer").exists()


def test_second_run_does_nothing(nemo, folder, capsys):
    before = nemo.stat()
    convert_checkpoint.convert(str(folder), nemo, verify=False)
    after = nemo.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "exists already" in capsys.readouterr().out


def test_same_source_gives_the_same_bytes(nemo, folder, tmp_path):
    again = convert_checkpoint.convert(str(folder), tmp_path / "again.nemo", verify=False)
    assert again.read_bytes() == nemo.read_bytes()


def test_another_precision_is_made_again(nemo, folder):
    convert_checkpoint.convert(str(folder), nemo, precision="bf16", verify=False)
    assert nemo_file.read_record(nemo)["precision"] == "bf16"


def test_bfloat16_folder_is_stored_in_bf16(tmp_path):
    (tmp_path / "hf").mkdir()
    small_models.write_random_llama(tmp_path / "hf", dtype="bfloat16")
    made = convert_checkpoint.convert(str(tmp_path / "hf"), tmp_path / "bf16.nemo", verify=False)
    assert nemo_file.read_record(made)["precision"] == "bf16"


def test_damaged_file_is_made_again(nemo, folder):
    whole = nemo.read_bytes()
    nemo.write_bytes(whole[: len(whole) // 2])
    convert_checkpoint.convert(str(folder), nemo, verify=False)
    assert nemo.read_bytes() == whole


def test_another_models_file_is_kept(nemo, folder, tmp_path):
    before = nemo.read_bytes()
    edit(folder, rope_theta=1e6)
    said = refusal(convert_checkpoint.convert, str(folder), nemo, verify=False)
    assert "was made from llama; --force overwrites it" in said
    (tmp_path / "mine.nemo").write_text("precious")
    assert "was not made by this command" in refusal(
        convert_checkpoint.convert, str(folder), tmp_path / "mine.nemo", verify=False
    )
    assert nemo.read_bytes() == before
    convert_checkpoint.convert(str(folder), nemo, verify=False, force=True)
    assert nemo.read_bytes() != before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "x.nemo"], "SOURCE=nowhere: no such folder"),
        (["."], "OUTPUT: missing"),
        (["tiny", "x.ckpt"], "does not end in .nemo"),
        (["tiny", "folder.nemo"], "is a folder"),
        (["tiny", "file/x.nemo"], "cannot be written"),
    ],
    ids=["no source", "no output", "no .nemo", "folder", "unwritable"],
)
def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path, args, said):
    (tmp_path / "folder.nemo").mkdir()
    (tmp_path / "file").touch()
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.nemo"]


def test_tokenizer_that_cannot_be_read_leaves_nothing(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    said = refusal(convert_checkpoint.convert, str(folder), tmp_path / "out" / "x.nemo", verify=False)
    assert "tokenizer cannot be loaded" in said
    assert len(said.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_is_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(hf_to_nemo.shutil, "disk_usage", lambda path: usage)
    said = refusal(convert_checkpoint.convert, str(folder), tmp_path / "x.nemo", verify=False)
    assert "are free" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_work_of_a_killed_run_is_removed(tmp_path):
    import socket

    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = tmp_path / f".x.{socket.gethostname()}.{done.stdout.strip()}.part"
    alive = tmp_path / f".x.{socket.gethostname()}.{os.getppid()}.part"
    dead.mkdir()
    alive.mkdir()
    with scratch.beside(tmp_path / "x"):
        assert not dead.exists()
        assert alive.exists()


def test_help_has_examples_and_imports_no_torch():
    code = (
        "import sys; from data_prep import convert_checkpoint as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "convert_checkpoint.py tiny" in done.stdout
    assert done.stdout.endswith("False\n")
