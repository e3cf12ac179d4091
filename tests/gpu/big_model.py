"""A .nemo folder of Llama-3-8B's shape with random weights, written in about the time that its 16 GB take."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from data_prep.models import hf_to_nemo
from data_prep.models.hf_folder import HFFolder
from data_prep.models.llama_shape import read_shape
from data_prep.models.nemo_writer import NemoWriter
from data_prep.unfinished import Journal
from tests.benchmarks.convert import write_config_and_tokenizer


def ensure(folder: Path, small: bool, found: dict[str, Any]) -> Path:
    """FOLDER/nemo, made if it is not there; `small` has two layers of a tiny model. Notes the seconds in `found`."""
    import torch

    from data_prep.models.megatron_weights import write_weights
    from data_prep.models.torch_dist import CheckpointWriter

    made = folder / "nemo"
    if made.exists():
        return made
    began = time.monotonic()
    changes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_config_and_tokenizer(folder / "hf", 2 if small else 32, **(changes | {"vocab_size": 1024} if small else {}))
    hf = HFFolder(folder / "hf", read_shape(folder / "hf"), {})
    writer = NemoWriter(folder / "part", False, Journal(folder / "journal.jsonl"))
    hf_to_nemo.write_head(hf, writer, {"source": "random", "precision": "bf16", "vocabulary": hf.shape.vocab})
    sizes = hf.shape.tensors()
    most = 8192 * max(size[-1] for size in sizes.values() if len(size) == 2)
    block = (0.02 * torch.randn(most, generator=torch.Generator().manual_seed(1))).to(torch.bfloat16)

    def read(name: str, first: int, end: int) -> torch.Tensor:
        """The same numbers for all weights: only their shapes matter here."""
        size = (end - first, *sizes[name][1:])
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        columns = size[1]
        repeated = -(-size[0] * columns // most)
        return block.repeat(repeated)[: size[0] * columns].view(size)

    write_weights(hf.shape, read, CheckpointWriter(writer, torch.bfloat16), lambda index: None)
    writer.close()
    (folder / "part").rename(made)
    found["seconds to make the model"] = round(time.monotonic() - began, 1)
    return made
