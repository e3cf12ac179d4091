"""A .nemo file that convert_checkpoint.py wrote: what it was made from, its tokenizer, and how it is packed.

Layout (a plain tar, in this order): conversion.json (what it was made from, how it was verified), model_config.yaml,
tokenizer/ (HF's files), model_weights/ (Megatron's distributed checkpoint). An unpacked folder of the same layout works
wherever a file does; NeMo accepts both. Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Final

from launcher.findings import Finding, Refused

RECORD = "conversion.json"
CONFIG = "model_config.yaml"
TOKENIZER_FOLDER = "tokenizer"
WEIGHTS = "model_weights"
#: Key of model_config.yaml for a scaling of the rotary frequencies that NeMo 2.1 does not implement.
ROPE_SCALING: Final = "rope_scaling"
_RECORD_BYTES = 2048
_MOST_BYTES = 256 << 20  # limit for a tokenizer: far above any real one, far below what would fill a disk
_MOST_FILES = 100


def read_record(nemo: Path) -> dict[str, object] | None:
    """The record of how `nemo` was made, or None if it has none (other converters' files, damaged files)."""
    try:
        if nemo.is_dir():
            text = (nemo / RECORD).read_bytes()
        else:
            with tarfile.open(nemo, "r:") as archive:
                first = archive.next()
                if first is None or _plain(first.name) != RECORD or first.size > _RECORD_BYTES:
                    return None
                member = archive.extractfile(first)
                if member is None:
                    return None
                text = member.read()
        record = json.loads(text)
    except (OSError, ValueError, RecursionError, tarfile.TarError):
        return None
    return record if isinstance(record, dict) else None


def rewrite_record(nemo: Path, record: dict[str, object]) -> None:
    """Replace the record, in a file in place. All records are padded to one length, so nothing else moves."""
    if nemo.is_dir():
        (nemo / RECORD).write_bytes(record_bytes(record))
        return
    with tarfile.open(nemo, "r:") as archive:
        first = archive.next()
        assert first is not None and _plain(first.name) == RECORD
        start = first.offset_data
    with nemo.open("r+b") as file:
        file.seek(start)
        file.write(record_bytes(record))


def record_bytes(record: dict[str, object]) -> bytes:
    """The content of the file RECORD."""
    text = json.dumps(record, indent=1).encode()
    assert len(text) <= _RECORD_BYTES, "the record outgrew its place"
    return text.ljust(_RECORD_BYTES)


def unpack_tokenizer(nemo: Path, folder: Path) -> Path:
    """Extract the tokenizer inside `nemo` to `folder`, atomically, and return that folder as an absolute path.

    The path is the value for model.tokenizer.type. Ranks may call this at the same time: the first one's folder stays.
    Raises Refused if the file holds no tokenizer, which is so for files of NeMo's own converters.
    """
    folder = folder.absolute()
    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return folder
    if nemo.is_dir() and (nemo / TOKENIZER_FOLDER).is_dir():
        return (nemo / TOKENIZER_FOLDER).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "files"
        made.mkdir()
        if not _extract_tokenizer(nemo, made):
            remedy = "convert it with data_prep/convert_checkpoint.py, or set model.tokenizer.type"
            raise Refused([Finding(str(nemo), "", "holds no tokenizer", remedy)])
        try:
            os.replace(made, folder)
        except OSError:
            if not folder.is_dir():  # no other rank made it, so the folder cannot be written
                raise
    return folder


def _extract_tokenizer(nemo: Path, into: Path) -> int:
    """Copy only the files of the tokenizer folder; returns how many."""
    count = total = 0
    try:
        with tarfile.open(nemo, "r:") as archive:
            for member in archive:
                parts = PurePosixPath(_plain(member.name)).parts
                if len(parts) != 2 or parts[0] != TOKENIZER_FOLDER or not member.isfile():
                    continue
                source = archive.extractfile(member)
                if source is None or parts[1] == "..":
                    continue
                count, total = count + 1, total + member.size
                if count > _MOST_FILES or total > _MOST_BYTES:
                    why = f"its tokenizer has more than {_MOST_FILES} files or {_MOST_BYTES >> 20} MiB"
                    raise Refused([Finding(str(nemo), "", why, "convert the model again")])
                with (into / parts[1]).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (OSError, tarfile.TarError) as error:
        raise Refused([Finding(str(nemo), "", f"cannot be read ({error})", "convert the model again")]) from None
    return count


def _plain(name: str) -> str:
    return name.removeprefix("./")
