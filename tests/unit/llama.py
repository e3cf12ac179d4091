"""Base models as a .nemo describes them, with no weights inside, and trials for them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from data_prep.models.nemo_writer import NemoWriter
from data_prep.unfinished import Journal
from launcher.nemo import nemo_file

#: Meta-Llama-3-8B's shape; 8,030,261,248 parameters with 128,256 words.
LLAMA3_8B = {
    "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
    "kv_channels": 128, "share_embeddings_and_output_weights": False, "make_vocab_size_divisible_by": 128,
    "encoder_seq_length": 8192, "max_position_embeddings": 8192, "position_embedding_type": "rope",
    "tokenizer": {"library": "huggingface", "type": "nemo:tokenizer", "model": None},
}  # fmt: skip
TINY = {
    **LLAMA3_8B,
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 160,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "max_position_embeddings": 2048,
}


def write_described(path: Path, config: dict[str, Any], vocabulary: int, without: str = "") -> Path:
    """A .nemo in the converter's layout. JSON is YAML, so the config needs no YAML writer."""
    files = {
        "conversion.json": json.dumps({"vocabulary": vocabulary}),
        "model_config.yaml": json.dumps(config),
        "tokenizer/tokenizer.json": "{}",
        "model_weights/metadata.json": "{}",
    }
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            if without and name.startswith(without):
                continue
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def new_nemo(folder: Path) -> NemoWriter:
    """The writer of a .nemo that is a folder, with nothing in it but the folder of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = NemoWriter(folder, False, Journal(folder.with_name("journal.jsonl")))
    writer.add_folder(nemo_file.WEIGHTS)
    return writer


def pack(folder: Path, nemo: Path) -> None:
    """Tar an unpacked .nemo. The record comes first, as readers expect it."""
    with tarfile.open(nemo, "w") as archive:
        for name in (nemo_file.RECORD, nemo_file.CONFIG, nemo_file.TOKENIZER_FOLDER, nemo_file.WEIGHTS):
            archive.add(folder / name, arcname=f"./{name}")
