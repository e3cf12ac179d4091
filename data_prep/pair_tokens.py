"""Pairs as the trial's own tokenizer sees them: lengths, and whether prompt and response share a token.

Uses the light `tokenizers` package; neither transformers nor torch is imported.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.pairs import Drop, Pair
from launcher.findings import Finding, Refused

_NAME = "tokenizer.json"
_REMEDY = "give a Hugging Face folder or file with tokenizer.json, or a .nemo made by data_prep/convert_checkpoint.py"


def read_tokenizer(path: Path) -> bytes:
    """The text of tokenizer.json: from the file itself, an HF folder, a .nemo (tar) or an unpacked .nemo.

    Raises Refused where there is none. SentencePiece's tokenizer.model is not read: `tokenizers` cannot.
    """
    if not path.exists():
        raise Refused([Finding("--tokenizer", str(path), "no such file or folder", _REMEDY)])
    try:
        if path.is_dir():
            places = [path / _NAME, path / "tokenizer" / _NAME, *sorted(path.glob(f"*_{_NAME}"))]
            found = next((place for place in places if place.is_file()), None)
            text = found.read_bytes() if found else None
        else:
            text = _from_tar(path) if path.suffix != ".json" else path.read_bytes()
    except tarfile.TarError as error:
        why = "is neither tokenizer.json nor a whole .nemo archive"
        raise Refused([Finding("--tokenizer", str(path), why, _REMEDY)]) from error
    except (OSError, EOFError) as error:
        raise Refused([Finding("--tokenizer", str(path), f"cannot be read ({error})", _REMEDY)]) from error
    if text is None:
        raise Refused([Finding("--tokenizer", str(path), "holds no tokenizer.json", _REMEDY)])
    return text


def _from_tar(path: Path) -> bytes | None:
    """tokenizer.json out of a .nemo. NeMo's own converters name it <hash>_tokenizer.json, where they put one in."""
    with tarfile.open(path, "r:*") as archive:
        for member in archive:  # headers only: the weights are skipped, not read, where the tar is not compressed
            name = PurePosixPath(member.name).name
            if member.isfile() and (name == _NAME or name.endswith(f"_{_NAME}")):
                file = archive.extractfile(member)
                return file.read() if file else None
    return None


class PairTokenizer:
    """Measures pairs in tokens. `sha256` is that of the tokenizer.json it was made from."""

    def __init__(self, path: Path, max_tokens: int | None = None) -> None:
        text = read_tokenizer(path)
        self.sha256 = hashlib.sha256(text).hexdigest()
        self.max_tokens = max_tokens
        self._path = path
        self._text = text
        self._tokenizer: Any = None

    def load(self) -> None:
        """Builds the tokenizer, which takes a moment; not needed to know its fingerprint."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            why, remedy = "needs the package 'tokenizers'", "pip install '.[data]', or leave --tokenizer out"
            raise Refused([Finding("--tokenizer", str(self._path), why, remedy)]) from error
        try:
            self._tokenizer = Tokenizer.from_str(self._text.decode())
        except Exception as error:  # the Rust code raises a bare Exception for every kind of bad file
            raise Refused([Finding("--tokenizer", str(self._path), f"is no tokenizer ({error})", _REMEDY)]) from error
        # A tokenizer.json may carry the limits of whoever saved it last; lengths here must be the true ones.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def measure(self, pairs: Sequence[Pair]) -> list[int | Drop]:
        """For each pair the tokens of prompt + the longer response, or why NeMo-Aligner could not train on it.

        No begin or end token is counted: NeMo adds none, unless model.data.append_eod is set, for which there is room
        at exactly max_tokens because the last token of a row is only ever a label.
        """
        assert self._tokenizer is not None, "load() first"
        texts = [
            text
            for pair in pairs
            for text in (pair.prompt, pair.prompt + pair.chosen_response, pair.prompt + pair.rejected_response)
        ]
        ids = [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        return [self._judge(*ids[at : at + 3]) for at in range(0, len(ids), 3)]

    def _judge(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> int | Drop:
        for side in (chosen, rejected):
            # What DPOModelDataset asserts; and a response must have a token left to learn from.
            if side[: len(prompt)] != prompt or len(side) <= len(prompt):
                return Drop.TOKENS_MERGE
        longer = max(len(chosen), len(rejected))
        return Drop.TOO_LONG if self.max_tokens is not None and longer > self.max_tokens else longer
