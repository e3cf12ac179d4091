"""Reads a trial's tokenizer files from a Hugging Face folder, a .nemo (packed or unpacked) or a single file."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launcher.findings import Finding, Refused

_FAST, _SENTENCEPIECE = "tokenizer.json", "tokenizer.model"
_NAMES = (_FAST, _SENTENCEPIECE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_MOST_BYTES = 256 << 20  # of one file in an archive, which may claim to hold more than fits into memory
_REMEDY = "give a Hugging Face folder or file with tokenizer.json, or a .nemo made by data_prep/convert_checkpoint.py"


@dataclass(frozen=True)
class TokenizerFiles:
    """The files that `read` found. `model` is a tokenizer.json, or a tokenizer.model if `sentencepiece` is set."""

    path: Path
    model: bytes
    sentencepiece: bool
    chat_template: str | None
    special_tokens: dict[str, str]
    """{"bos_token": text, "eos_token": text, ...}, as chat templates use them."""

    @property
    def sha256(self) -> str:
        """SHA-256 of `model`, the only file that determines the tokens."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def kind(self) -> str:
        return "sentencepiece" if self.sentencepiece else "tokenizers"


def read(path: Path) -> TokenizerFiles:
    """Reads the tokenizer files at `path`. Raises Refused if there is no tokenizer."""
    if not path.exists():
        raise Refused([Finding("--tokenizer", str(path), "no such file or folder", _REMEDY)])
    try:
        files = dict(_files(path))
    except tarfile.TarError as error:
        why = "is neither a tokenizer.json nor a complete .nemo archive"
        raise Refused([Finding("--tokenizer", str(path), why, _REMEDY)]) from error
    except (OSError, EOFError) as error:
        raise Refused([Finding("--tokenizer", str(path), f"cannot be read ({error})", _REMEDY)]) from error
    model = files.get(_FAST, files.get(_SENTENCEPIECE))
    if model is None:
        raise Refused([Finding("--tokenizer", str(path), "contains no tokenizer.json and no tokenizer.model", _REMEDY)])
    config = _json(path, files, "tokenizer_config.json")
    special = {**_json(path, files, "special_tokens_map.json"), **config}
    template = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else _template(config)
    tokens = {name: text for name, value in special.items() if name.endswith("_token") and (text := _text(value))}
    return TokenizerFiles(path, model, _FAST not in files, template, tokens)


def among(names: Iterable[str]) -> bool:
    """Whether files of these names are enough for `read`."""
    return any(_known(PurePosixPath(name).name) in (_FAST, _SENTENCEPIECE) for name in names)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for folder in (path / "tokenizer", path):  # the last one wins
            for place in sorted(folder.glob("*")):
                if (name := _known(place.name)) and place.is_file():
                    yield name, place.read_bytes()
    elif path.suffix == ".json":
        yield _FAST, path.read_bytes()
        if (config := path.with_name("tokenizer_config.json")).is_file():
            yield config.name, config.read_bytes()
    elif path.suffix == ".model":
        yield _SENTENCEPIECE, path.read_bytes()
    else:
        yield from _members(path)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as archive:
        for member in archive:  # an uncompressed tar is read without its weights
            name = _known(PurePosixPath(member.name).name)
            if name and member.isfile() and member.size <= _MOST_BYTES and (file := archive.extractfile(member)):
                yield name, file.read()


def _known(name: str) -> str | None:
    """The standard name. NeMo's own converters put a hash before it: <hash>_tokenizer.json."""
    return next((known for known in _NAMES if name == known or name.endswith(f"_{known}")), None)


def _json(path: Path, files: dict[str, bytes], name: str) -> dict[str, object]:
    try:
        loaded = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise Refused([Finding("--tokenizer", str(path), f"{name} is not JSON ({error})", _REMEDY)]) from error
    return loaded if isinstance(loaded, dict) else {}


def _template(config: dict[str, object]) -> str | None:
    """The chat template; if there are several, the one named default."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: object) -> str:
    """The text of a token, which is stored as a text or as {"content": text, ...}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
