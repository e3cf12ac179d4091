"""Conversion at Llama-3-8B's shape: HF -> .nemo with its proof, and back; peak memory, seconds, and bits compared.

    python -m tests.benchmarks.convert [--layers 2] [--nemo CHECKOUT]

Layers have the true sizes (hidden 4096, 32 heads, 8 key heads, MLP 14336, 128,256 tokens, untied, bf16), and random
weights; a few of them do, since memory must not grow with their number. With a checkout of NVIDIA's NeMo (tag v2.1.0)
its convert_llama_hf_to_nemo.py is timed too, on SmolLM2, whose size it can hold. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "initializer_range": 0.02,
}
LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 |= {"original_max_position_embeddings": 8192}
SHARD_BYTES = 1 << 30
CONVERTER = str(ROOT / "data_prep" / "convert_checkpoint.py")


@dataclass(frozen=True)
class Run:
    """A command that ended well."""

    seconds: float
    peak: int
    """Bytes: the most that it and its children had at a time, shared pages counted once (PSS)."""
    printed: str


def write_config_and_tokenizer(folder: Path, layers: int, **changes: Any) -> None:
    """A folder of 8B's shape but for its depth and `changes`, without weights."""
    from data_prep.models.tiny_tokenizer import write_tokenizer

    shape = SHAPE | changes
    folder.mkdir(parents=True)
    known = write_tokenizer(folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"] |= {f"<unused {n}>": n for n in range(known, shape["vocab_size"])}
    file.write_text(json.dumps(tokenizer))
    config = {**shape, "num_hidden_layers": layers, "rope_scaling": LLAMA31, "bos_token_id": 0, "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))


def write_llama(folder: Path, layers: int, shard_bytes: int = SHARD_BYTES, **changes: Any) -> int:
    """A random Llama of 8B's shape but for its depth and `changes`; returns a layer's and the embedding's bytes."""
    import torch

    from data_prep.models.llama_shape import read_shape
    from data_prep.models.safetensors_writer import SafetensorsWriter

    write_config_and_tokenizer(folder, layers, **changes)
    shapes = read_shape(folder).tensors()
    writer = SafetensorsWriter(folder, shapes, torch.bfloat16, shard_bytes)
    random = torch.Generator().manual_seed(1)
    for name, size in shapes.items():
        weight = torch.empty(size, dtype=torch.bfloat16)
        for rows in weight.split(4096):  # fp32 is drawn
            rows.copy_(torch.randn(rows.shape, generator=random) * 0.02 + (len(size) == 1))
        writer.add(name, weight)
    writer.close()
    layer = sum(torch.Size(size).numel() for name, size in shapes.items() if name.startswith("model.layers.0."))
    return 2 * (layer + torch.Size(shapes["model.embed_tokens.weight"]).numel())


def measured(command: Sequence[str], **env: str) -> Run:
    """Runs `command`; raises CalledProcessError with what it said where it fails."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as said:
        pipes = {"stdout": said, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(list(command), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, **pipes)
        while process.poll() is None:
            peak = max(peak, sum(map(_pss, _family(process.pid))))
            time.sleep(0.1)
        said.seek(0)
        printed = said.read()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command), printed[-3000:])
    return Run(time.monotonic() - began, peak, printed)


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            tasks = list(Path(f"/proc/{one}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two HF folders hold the same tensors, bit for bit; a block of rows of each in memory."""
    import torch
    from safetensors import safe_open

    from data_prep.models.hf_folder import open_folder

    folders = [open_folder(one), open_folder(other)]
    if folders[0].shape != folders[1].shape or folders[0].files.keys() != folders[1].files.keys():
        return False
    for name, size in folders[0].shape.tensors().items():
        for first in range(0, size[0], 8192):
            rows = []
            for folder in folders:
                with safe_open(folder.files[name], framework="pt") as file:
                    rows.append(file.get_slice(name)[first : first + 8192])
            if not torch.equal(*(part.contiguous().view(torch.uint8) for part in rows)):
                return False
    return True


def nemo_converter(checkout: Path, hf: Path, out: Path) -> Run:
    """NVIDIA's own converter, with what stands in for CUDA and Apex where they are missing."""
    script = checkout / "scripts" / "checkpoint_converters" / "convert_llama_hf_to_nemo.py"
    code = (
        "import runpy, sys; from launcher.train.nemo_aligner import standins; standins.install(); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = ["--input_name_or_path", str(hf), "--output_path", str(out), "--precision", "32", "--llama31", ""]
    return measured([sys.executable, "-c", code, str(script), *words], HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.convert")
    parser.add_argument("--layers", type=int, default=2, help="how many of 8B's 32 (default 2; 1.5 GB of disk each)")
    parser.add_argument("--nemo", type=Path, metavar="CHECKOUT", help="NVIDIA/NeMo at v2.1.0, to time its converter")
    parser.add_argument("--smollm2", type=Path, default=ROOT / "models" / "hf" / "smollm2_135m", metavar="FOLDER")
    args = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        good = large(Path(scratch), args.layers)
        if args.nemo:
            compared(Path(scratch), args.nemo, args.smollm2)
    return 0 if good else 1


def large(scratch: Path, layers: int) -> bool:
    hf, nemo, back = scratch / "llama", scratch / "llama.nemo", scratch / "back"
    print(f"writing a random Llama of 8B's shape with {layers} layers", file=sys.stderr, flush=True)
    bar = 2 * write_llama(hf, layers)
    commands = {
        "HF -> .nemo, not proved": [str(hf), str(scratch / "unproved.nemo"), "--no-verify"],
        "HF -> .nemo, proved": [str(hf), str(nemo)],
        ".nemo -> HF": ["--to", "hf", str(nemo), str(back)],
    }
    good = True
    for what, words in commands.items():
        print(f"  {what}", file=sys.stderr, flush=True)
        run = measured([sys.executable, CONVERTER, *words])
        good &= run.peak < bar
        missed = "" if run.peak < bar else "   MISSED"
        print(f"{what:26} {run.seconds:6.0f} s   peak {run.peak / 2**30:5.2f} GiB   bar < {bar / 2**30:.2f}{missed}")
        (scratch / "unproved.nemo").unlink(missing_ok=True)
    same = same_bits(hf, back)
    print(f"there and back: weights {'the same, bit for bit' if same else 'DIFFER'}", flush=True)
    return good and same


def compared(scratch: Path, checkout: Path, smollm2: Path) -> None:
    ours = measured([sys.executable, CONVERTER, str(smollm2), str(scratch / "ours.nemo"), "--no-verify"])
    proved = measured([sys.executable, CONVERTER, str(smollm2), str(scratch / "proved.nemo")])
    theirs = nemo_converter(checkout, smollm2, scratch / "theirs" / "theirs.nemo")
    for what, run in (("this converter", ours), ("this converter, proved", proved), ("NeMo's, not proved", theirs)):
        ratio = f"{theirs.seconds / run.seconds:5.1f}x"
        print(f"SmolLM2, {what:24} {run.seconds:6.1f} s   peak {run.peak / 2**30:5.2f} GiB   NeMo's / this {ratio}")


if __name__ == "__main__":
    sys.exit(main())
