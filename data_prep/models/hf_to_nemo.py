"""Writes a Hugging Face folder as a .nemo, layer by layer, and continues where a killed process stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from data_prep.models.hf_folder import HFFolder
from data_prep.models.nemo_writer import NemoWriter
from data_prep.progress import Progress
from data_prep.unfinished import Journal
from launcher import units
from launcher.findings import Finding, Refused
from launcher.nemo import nemo_file

_HEAD = "head"  # the part that is all but the weights


def write(
    folder: HFFolder, made: Path, packed: bool, record: dict[str, object], journal: Journal, progress: Progress
) -> None:
    """Write the model in `folder` to `made`, a file if `packed`, else a folder. Raises Refused."""
    with progress.phase("importing torch, reading the tokenizer"):
        import torch
        from safetensors import safe_open

        from data_prep.models.megatron_weights import write_weights
        from data_prep.models.torch_dist import CheckpointWriter

        nemo = NemoWriter(made, packed, journal)
        if nemo.holds(_HEAD) is None:
            write_head(folder, nemo, record)
    if kept := len(journal.parts) - 1:
        total = folder.shape.layers + 1
        progress.say(f"continues an interrupted conversion: {kept} of {total} files of weights are written already")

    def read(name: str, first: int, end: int) -> torch.Tensor:
        with safe_open(folder.files[name], framework="pt") as file:  # reopened each time, so that its pages are freed
            rows: torch.Tensor = file.get_slice(name)[first:end]
            return rows

    def on_layer(index: int) -> None:
        progress.detail = f"layer {index + 1} of {folder.shape.layers}"

    dtype = torch.bfloat16 if record["precision"] == "bf16" else torch.float32
    with progress.phase(f"converting {folder.shape.layers} layers"):
        write_weights(folder.shape, read, CheckpointWriter(nemo, dtype), on_layer)
        nemo.close()


def write_head(folder: HFFolder, nemo: NemoWriter, record: dict[str, object]) -> None:
    """Write the record, the config and the tokenizer: all but the weights."""
    import yaml

    with tempfile.TemporaryDirectory(dir=nemo.path.parent) as scratch:
        tokenizer = Path(scratch)
        folder.copy_tokenizer(tokenizer)
        config = yaml.safe_dump(_config(folder, tokenizer, str(record["precision"])), sort_keys=False)
        for name, content in ((nemo_file.RECORD, nemo_file.record_bytes(record)), (nemo_file.CONFIG, config.encode())):
            with nemo.file(name) as stream:
                stream.write(content)
        nemo.add_folder(nemo_file.TOKENIZER_FOLDER)
        for file in sorted(tokenizer.iterdir()):
            nemo.copy(file, f"{nemo_file.TOKENIZER_FOLDER}/{file.name}")
    nemo.add_folder(nemo_file.WEIGHTS)
    nemo.finish(_HEAD, {})


def _config(folder: HFFolder, tokenizer: Path, precision: str) -> dict[str, object]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read the folder only; ask no server
    from transformers import AutoTokenizer

    from data_prep.models.nemo_config import model_config

    try:
        tokens = len(AutoTokenizer.from_pretrained(str(tokenizer), use_fast=True, trust_remote_code=False))
    except Exception as error:  # transformers raises whatever its many parsers raise
        why = f"its tokenizer cannot be loaded ({type(error).__name__}: {str(error)[:200]})"
        raise Refused([Finding(str(folder.path), "", why, "copy the model's tokenizer files there again")]) from None
    try:
        return model_config(folder.shape, tokens, precision)
    except ValueError as error:
        remedy = "save the model with resize_token_embeddings(len(tokenizer))"
        raise Refused([Finding(str(folder.path), "", str(error), remedy)]) from None


def check_space(folder: HFFolder, work: Path, precision: str, copies: int) -> None:
    """Raises Refused if there is no room for `copies` of the model, less what a killed process has written."""
    bytes_each = 2 if precision == "bf16" else 4
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    needed = folder.shape.parameters * bytes_each * copies - there + (64 << 20)
    free = shutil.disk_usage(work).free
    if free < needed:
        why = f"needs {units.size(needed)} of disk while it works, {units.size(free)} are free"
        raise Refused([Finding("OUTPUT", str(work.parent), why, "name a folder with more room")])
