"""A Hugging Face Llama folder: its weight files, its tokenizer files, its fingerprint. Stdlib only.

Everything that would make a conversion fail later is found here first, all at once, within milliseconds, from
config.json and the headers of the safetensors files: no weight is read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from data_prep import mistaken_paths
from data_prep.models.llama_shape import LlamaShape, read_shape
from launcher.findings import Finding, Refused

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


@dataclass(frozen=True)
class HFFolder:
    """A checked folder: `files` maps each weight's HF name to its safetensors file."""

    path: Path
    shape: LlamaShape
    files: dict[str, Path]

    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files, and config.json, which AutoTokenizer falls back to."""
        present = [self.path / name for name in (*TOKENIZER_FILES, "config.json", "generation_config.json")]
        return [path for path in present if path.is_file()]

    def copy_tokenizer(self, into: Path) -> None:
        """Copy the tokenizer's files, rewritten for transformers 4, which NeMo loads them with."""
        for path in self.tokenizer_files():
            if path.name == "tokenizer_config.json":
                config = json.loads(path.read_text(encoding="utf-8"))
                text = json.dumps(_with_old_keys(config), indent=2, ensure_ascii=False)
                (into / path.name).write_text(text + "\n", encoding="utf-8")
            else:
                shutil.copyfile(path, into / path.name)

    def licence(self) -> str:
        """The licence named in the folder's model card or licence file; "" if it has neither."""
        try:
            card = (self.path / "README.md").read_text(encoding="utf-8", errors="replace")
        except OSError:
            card = ""
        front = card.split("\n---", 1)[0] if card.startswith("---") else ""
        stated = dict(line.split(":", 1) for line in front.splitlines() if line.startswith("license") and ":" in line)
        named = stated.get("license_name") or stated.get("license")
        if named:
            return named.strip().strip("\"'")[:80]
        for file in sorted(self.path.glob("LICEN[CS]E*")):
            text = file.read_text(encoding="utf-8", errors="replace")
            return next((line.strip()[:80] for line in text.splitlines() if line.strip()), "")
        return ""

    def fingerprint(self) -> str:
        """SHA-256 of the config, the tokenizer, and each weight file's size, header and 16 samples of 64 KiB.

        It does not read every byte, so that a model of 16 GB is recognised in well under a second. Training changes all
        samples.
        """
        digest = hashlib.sha256()
        for path in self.tokenizer_files():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        for path in sorted(set(self.files.values())):
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                (header,) = struct.unpack("<Q", file.read(8))
                digest.update(file.read(header))
                for index in range(_SAMPLES):
                    file.seek(8 + header + (size - 8 - header) * index // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
        return digest.hexdigest()


def _with_old_keys(config: dict[str, object]) -> dict[str, object]:
    """A tokenizer_config.json of transformers 5, rewritten as transformers 4 writes it; others unchanged."""
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):  # in transformers 4 it is a dictionary of names and tokens
        config = {key: value for key, value in config.items() if key != "extra_special_tokens"}
        config["additional_special_tokens"] = extra
    if config.get("tokenizer_class") == "TokenizersBackend":
        config = {**config, "tokenizer_class": "PreTrainedTokenizerFast"}
    return config


def open_folder(path: Path) -> HFFolder:
    """Check everything that can be checked without reading a weight. Raises Refused with every finding."""
    if not path.is_dir():
        raise Refused([_missing_folder(path)])
    if (known := mistaken_paths.describe(path)) is not None:
        raise Refused([Finding("SOURCE", str(path), *known)])
    shape = read_shape(path)
    findings = list(_tokenizer_findings(path))
    files, bad = _weights(path, shape)
    if findings or bad:
        raise Refused([*findings, *bad])
    return HFFolder(path, shape, files)


def _missing_folder(path: Path) -> Finding:
    if path.exists():
        known = mistaken_paths.describe(path) or ("is a file", "give the folder of a Hugging Face checkpoint")
        return Finding("SOURCE", str(path), *known)
    remedy = "give the folder of a Hugging Face Llama, or tiny or smollm2_135m"
    return Finding("SOURCE", str(path), "no such folder", remedy)


def _tokenizer_findings(path: Path) -> Iterator[Finding]:
    has = {name for name in TOKENIZER_FILES if (path / name).is_file()}
    if not has & {"tokenizer.json", "tokenizer.model"}:
        remedy = "copy the model's tokenizer files there"
        yield Finding(str(path), "", "no tokenizer.json and no tokenizer.model", remedy)


def _weights(path: Path, shape: LlamaShape) -> tuple[dict[str, Path], list[Finding]]:
    """The file of each expected weight; and findings on missing weights, shapes and types, from the headers."""
    shards = sorted(path.glob("model*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            shards = sorted({path / name for name in places.values()})
        except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            return {}, [Finding(str(index), "", f"is not an index of safetensors files ({error!r})", "fetch it again")]
    if not shards:
        remedy = "save the model with save_pretrained(..., safe_serialization=True)"
        return {}, [Finding(str(path), "", "contains no model*.safetensors", remedy)]
    headers: dict[str, tuple[Path, TensorEntry]] = {}
    findings: list[Finding] = []
    for shard in shards:
        try:
            headers |= {name: (shard, entry) for name, entry in read_header(shard).items()}
        except Refused as refused:
            findings += refused.findings
    return ({}, findings) if findings else _match(path, shape, headers)


def _match(
    path: Path, shape: LlamaShape, headers: dict[str, tuple[Path, TensorEntry]]
) -> tuple[dict[str, Path], list[Finding]]:
    expected = shape.tensors()
    findings = []
    missing = sorted(expected.keys() - headers.keys())
    if missing:
        why = f"{len(missing)} weights are missing, first {missing[0]}"
        findings.append(Finding(str(path), "", why, "fetch it again"))
    ignored = {"lm_head.weight"} if shape.tied else set()
    extra = [name for name in headers if name not in expected and name not in ignored and "rotary_emb" not in name]
    if extra:
        why = f"has {len(extra)} weights that do not belong to its config.json, first {min(extra)}"
        remedy = "only plain Llama checkpoints can be converted (merge adapters first)"
        findings.append(Finding(str(path), "", why, remedy))
    for name in expected.keys() & headers.keys():
        file, entry = headers[name]
        if tuple(entry["shape"]) != expected[name]:
            why = f"has shape {tuple(entry['shape'])}, but {expected[name]} by config.json"
            findings.append(Finding(f"{file}: {name}", "", why))
        elif entry["dtype"] not in ("F32", "F16", "BF16"):
            findings.append(Finding(f"{file}: {name}", entry["dtype"], "unsupported type", "needs F32, F16 or BF16"))
    return {name: headers[name][0] for name in expected if name in headers}, findings[:10]


class TensorEntry(TypedDict):
    """What a safetensors file's header has for one tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_header(file: Path) -> dict[str, TensorEntry]:
    """A safetensors file's header, by the tensors' names. Raises Refused if missing or truncated."""
    again = "fetch it again"
    if mistaken_paths.is_lfs_pointer(file):
        why = "is a git-lfs pointer, not the file itself"
        raise Refused([Finding(str(file), "", why, "run `git lfs pull` in its folder")])
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if 8 + length > size:
                raise Refused([Finding(str(file), "", f"is truncated ({size} bytes)", again)])
            header: dict[str, TensorEntry] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise Refused([Finding(str(file), "", f"cannot be read ({error.strerror})", again)]) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Refused([Finding(str(file), "", f"is not a safetensors file ({error!r})", again)]) from None
    if size != end:
        raise Refused([Finding(str(file), "", f"is truncated: {size} of {end} bytes", again)])
    return header
