"""Tiny models in each dress: config.json as a version of transformers wrote it, and the logits that it computed.

    python -m tests.integration.generations         # writes NAME_transformersMAJOR.json with the installed transformers

Run it once with transformers 4.48 and once with 5, in an environment of its own: the older one misreads configs of the
newer one, so it cannot say what they mean. Weights are drawn anew from a seed and are not in the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
IDS = list(range(3, 1024, 8))
#: Positions and tokens whose logits are kept.
POSITIONS, TOKENS = [1, 63, 127], list(range(0, 1024, 64))
_LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA31 |= {"original_max_position_embeddings": 8192}
_LLAMA3 = {"rope_theta": 500000.0, "max_position_embeddings": 8192}
_QWEN = {"model_type": "qwen2", "rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
_QWEN |= {"sliding_window": 32768, "max_window_layers": 2, "use_sliding_window": False}
#: The keys of each generation's published config.json that matter, in sizes of a tiny model.
MODELS: dict[str, dict[str, Any]] = {
    "llama2": {"num_key_value_heads": 4, "max_position_embeddings": 4096},
    "llama3": _LLAMA3,
    "llama31": {**_LLAMA3, "max_position_embeddings": 131072, "rope_scaling": _LLAMA31},
    "llama32": {
        **_LLAMA3,
        "max_position_embeddings": 131072,
        "rope_scaling": _LLAMA31 | {"factor": 32.0},
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
    "llama33": {**_LLAMA3, "max_position_embeddings": 131072, "rope_scaling": _LLAMA31, "num_key_value_heads": 1},
    "qwen25": {**_QWEN, "tie_word_embeddings": True},
    "qwen25_7b": _QWEN,
    "mistral7b_v03": {"model_type": "mistral", "rope_theta": 1e6, "max_position_embeddings": 32768},
}


def write_folder(name: str, folder: Path) -> None:
    """The tiny model `name` with a config.json of transformers 4."""
    from data_prep.models import small_models

    folder.mkdir(parents=True)
    small_models.write_random_llama(folder, vocab_size=1024, **MODELS[name])


def main() -> None:
    import tempfile

    import torch
    import transformers

    for name in MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(name, Path(scratch, "made"))
            options = {"attn_implementation": "eager", "torch_dtype": torch.float32}
            model = transformers.AutoModelForCausalLM.from_pretrained(Path(scratch, "made"), **options).eval()
            with torch.no_grad():
                logits = model(torch.tensor([IDS])).logits[0, POSITIONS][:, TOKENS]
            model.save_pretrained(Path(scratch, "saved"))
            config = json.loads(Path(scratch, "saved", "config.json").read_text())
        kept = [[round(value, 7) for value in row] for row in logits.tolist()]
        major = transformers.__version__.partition(".")[0]
        text = json.dumps({"config": config, "logits": kept})
        (HERE / f"{name}_transformers{major}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{name}: transformers {transformers.__version__}, largest logit {logits.abs().max():.2f}")
