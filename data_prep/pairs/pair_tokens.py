"""Checks pairs with the trial's own tokenizer: lengths, and whether a token spans prompt and response.

Uses the light packages `tokenizers` or `sentencepiece`; neither transformers nor torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_prep.pairs.conversation import Drop, Pair
from data_prep.pairs.token_counter import TokenCounter
from data_prep.pairs.tokenizer_files import TokenizerFiles
from launcher.findings import Finding, Refused

FURTHEST = 24  # most characters by which a border is moved: "<|end_header_id|>\n\n" has 19


class Measured(NamedTuple):
    """A pair that can be trained on. `length`: tokens of prompt + the longer response."""

    pair: Pair
    length: int
    moved: bool = False


class PairTokenizer:
    """Measures pairs in tokens. Call `load` first."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.files = files
        self._encoder: Any = None
        self._counter: TokenCounter | None = None
        self._special: re.Pattern[str] | None = None

    def load(self) -> None:
        """Builds the tokenizer, which takes a moment; its fingerprint is known without it. Raises Refused."""
        self._encoder = _SentencePiece(self.files) if self.files.sentencepiece else _Tokenizers(self.files)
        if not self.files.sentencepiece:
            self._counter = TokenCounter.of(self.files.model, lambda text: self._encoder.encode([text])[0])
        if special := self._encoder.special:
            self._special = re.compile("|".join(map(re.escape, special)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, as NeMo's text_to_ids gives them: no begin or end token is added."""
        return list(self._encoder.encode(list(texts)))

    def has_special(self, texts: Sequence[str]) -> bool:
        """Whether a text contains a special token: a model could take it for the end of the turn, for example."""
        return self._special is not None and any(self._special.search(text) for text in texts)

    def token_id(self, token: str) -> int | None:
        """The id of the token with this text, or None."""
        id_ = self._encoder.token_id(token)
        return None if id_ is None else int(id_)

    def measure(self, pairs: Sequence[Pair]) -> list[Measured | Drop]:
        """Each pair with its length, or the reason to drop it. The border is moved where a token crosses it.

        Begin and end tokens are not counted: NeMo adds none, unless model.data.append_eod is set. That token fits even
        at exactly --max-tokens, because the last token of a row is only a label.
        """
        measured: list[Measured | Drop | None] = [self._by_pieces(pair) for pair in pairs]
        left = [number for number, result in enumerate(measured) if result is None]
        for number, result in zip(left, self._whole([pairs[number] for number in left]), strict=True):
            measured[number] = result or self._repaired(pairs[number])
        return [result for result in measured if result is not None]

    def _by_pieces(self, pair: Pair) -> Measured | None:
        if self._counter is None:
            return None
        counts = self._counter.sides(pair.prompt, (pair.chosen_response, pair.rejected_response))
        if counts is None or counts[0] >= min(counts[1:]):
            return None
        return Measured(pair, max(counts[1:]))

    def _whole(self, pairs: Sequence[Pair], moved: bool = False) -> list[Measured | None]:
        """Encodes pairs as NeMo-Aligner does and checks what it asserts; None for a pair that would fail."""
        texts = [
            text
            for pair in pairs
            for text in (pair.prompt, pair.prompt + pair.chosen_response, pair.prompt + pair.rejected_response)
        ]
        ids = self.encode(texts) if texts else []
        measured: list[Measured | None] = []
        for number, pair in enumerate(pairs):
            prompt, *sides = ids[3 * number : 3 * number + 3]
            # A response must have a token of its own left to learn from.
            sound = all(side[: len(prompt)] == prompt and len(side) > len(prompt) for side in sides)
            measured.append(Measured(pair, max(map(len, sides)), moved) if sound else None)
        return measured

    def _repaired(self, pair: Pair) -> Measured | Drop:
        """Moves the border left as little as needed, by at most FURTHEST characters."""
        for characters in range(1, min(FURTHEST, len(pair.prompt) - 1) + 1):
            if (measured := self._whole([pair.with_border_moved(characters)], True)[0]) is not None:
                return measured
        return Drop.TOKENS_MERGE


class _Tokenizers:
    """The tokenizer in a tokenizer.json."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            why, remedy = "needs the package 'tokenizers'", "pip install '.[data]', or leave --tokenizer out"
            raise Refused([Finding("--tokenizer", str(files.path), why, remedy)]) from error
        try:
            self._tokenizer = Tokenizer.from_str(files.model.decode())
        except Exception as error:  # the Rust code raises a bare Exception for every kind of bad file
            raise _no_tokenizer(files, error) from error
        # A tokenizer.json may contain truncation and padding settings; here we need the true lengths.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self.special = [token.content for token in added if token.special]

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def token_id(self, token: str) -> int | None:
        id_: int | None = self._tokenizer.token_to_id(token)
        return id_


class _SentencePiece:
    """A tokenizer.model, read as NeMo's SentencePieceTokenizer reads it. Text cannot encode to its control tokens."""

    special: tuple[str, ...] = ()

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            why, remedy = "is a tokenizer.model, which needs the package 'sentencepiece'", "pip install sentencepiece"
            raise Refused([Finding("--tokenizer", str(files.path), why, remedy)]) from error
        try:
            self._processor = SentencePieceProcessor(model_proto=files.model)
        except RuntimeError as error:
            raise _no_tokenizer(files, error) from error

    def encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(texts)
        return ids

    def token_id(self, token: str) -> int | None:
        id_: int = self._processor.piece_to_id(token)
        return None if id_ == self._processor.unk_id() else id_


def _no_tokenizer(files: TokenizerFiles, error: Exception) -> Refused:
    remedy = "give the folder or the .nemo of the trial's model"
    return Refused([Finding("--tokenizer", str(files.path), f"is not a tokenizer ({error})", remedy)])
