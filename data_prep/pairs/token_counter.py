r"""Counts a text's tokens exactly, piece by piece; the counts of known pieces are cached.

A byte-level BPE tokenizer like GPT-2's first splits a text with a regular expression and then makes tokens inside each
split. The expressions of GPT-2, Llama 3 and Qwen 2 have these properties (each can be read off the expression): none
looks behind; after a letter, a match continues only with letters; after another non-space character, a match never
continues with a space. So a split always ends between a letter and a non-letter, and between any non-space character
and a space after it. A text may be cut there: its tokens are the tokens of the pieces, in order.
HH's border, "Assistant:" + " I", is such a place: no token ever crosses it.

For a tokenizer of any other kind `TokenCounter.of` returns None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_KNOWN = {_GPT2, _LLAMA3, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")}

#: Match up to the next place where a text may be cut. ASCII letters end a piece only if the whole text is ASCII:
#: otherwise the next character may be a letter too.
_ASCII = re.compile(r"\s*[^\sA-Za-z]*(?:[^\S ]\s*[^\sA-Za-z]*)*[A-Za-z]*")
_ANY = re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*\Z)?|\s+")

_LONGEST = 64  # longest piece to cache, in characters: longer ones rarely occur again
_MOST = 100_000  # pieces to cache: about 15 MB


class _Counts(dict[str, int]):
    """{piece: number of tokens}; a missing count is computed with `encode`."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__({"": 0})
        self._encode = encode

    def __missing__(self, piece: str) -> int:
        count = len(self._encode(piece))
        if len(piece) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
                self[""] = 0
            self[piece] = count
        return count


class TokenCounter:
    """`encode` returns the token ids of any text from the full tokenizer."""

    def __init__(self, added: list[str], encode: Callable[[str], list[int]]) -> None:
        self._counts = _Counts(encode)
        self._encode = encode
        self._firsts = {token[0] for token in added}
        longest_first = sorted(added, key=len, reverse=True)
        self._added = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
        self._joined: dict[tuple[str, str], bool] = {}

    @classmethod
    def of(cls, model: bytes, encode: Callable[[str], list[int]]) -> TokenCounter | None:
        """A counter for this tokenizer.json; None if we do not know where the tokenizer's splits end."""
        config: dict[str, Any] = json.loads(model)
        added = config.get("added_tokens") or []
        simple = config.get("normalizer") is None and _is_known(config.get("pre_tokenizer"))
        simple = simple and config["model"].get("type") == "BPE" and not config["model"].get("dropout")
        if not simple or not _never_overlap(added):
            return None
        return cls([token["content"] for token in added], encode)

    def count(self, text: str) -> int:
        """The number of tokens of the text."""
        if self._added is None or not any(first in text for first in self._firsts):
            return self._plain(text)
        parts = self._added.split(text)  # text, token, text, token, ..., text
        return len(parts) // 2 + sum(map(self._plain, parts[::2]))

    def _plain(self, text: str) -> int:
        pieces = (_ASCII if text.isascii() else _ANY).findall(text)
        return sum(map(self._counts.__getitem__, pieces))

    def sides(self, prompt: str, responses: tuple[str, str]) -> tuple[int, int, int] | None:
        """(tokens of the prompt, of prompt + first, of prompt + second response).

        None if a token may cross the border; then only encoding the whole texts gives the counts.
        """
        before = self.count(prompt)
        if prompt and not prompt[-1].isspace() and all(response[:1] == " " for response in responses):
            return before, before + self.count(responses[0]), before + self.count(responses[1])
        tail = self._tail(prompt)
        if any(first in tail for first in self._firsts):
            return None
        rest = before - self._plain(tail)
        if not all(self._ends_alike(tail, response) for response in responses):
            return None
        first, second = (rest + self.count(tail + response) for response in responses)
        return before, first, second

    def _tail(self, prompt: str) -> str:
        """The last piece of the prompt; "" if it ends with an added token, which no token can cross."""
        last = self._added.split(prompt)[-1] if self._added else prompt
        pieces = [piece for piece in (_ASCII if last.isascii() else _ANY).findall(last) if piece]
        return pieces[-1] if pieces else ""

    def _ends_alike(self, tail: str, response: str) -> bool:
        """Whether the tokens of tail + response begin with those of the tail; False also if that is unknown."""
        if not tail:
            return True
        text = tail + (self._added.split(response)[0] if self._added else response)
        match = (_ASCII if text.isascii() else _ANY).match(text)
        piece = match[0] if match else ""
        if len(piece) <= len(tail):
            return len(piece) == len(tail)
        if (tail, piece) not in self._joined:
            if len(self._joined) >= _MOST:
                self._joined.clear()
            start = self._encode(tail)
            self._joined[tail, piece] = self._encode(piece)[: len(start)] == start
        return self._joined[tail, piece]


def _is_known(pre_tokenizer: Any) -> bool:
    """Whether the pre-tokenizer is known and splits with one of the expressions in _KNOWN or with GPT-2's."""
    if not isinstance(pre_tokenizer, dict):
        return False
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return all(map(_is_harmless, parts)) and any(map(_splits, parts))


def _is_harmless(part: dict[str, object]) -> bool:
    if part["type"] == "ByteLevel":
        return not part["add_prefix_space"]
    return part["type"] == "Digits" or _splits(part)


def _splits(part: dict[str, Any]) -> bool:
    if part["type"] == "Split":
        isolated = part["behavior"] == "Isolated" and not part["invert"]
        return isolated and part["pattern"].get("Regex") in _KNOWN
    return bool(part["type"] == "ByteLevel" and part.get("use_regex", True))


def _never_overlap(added: list[dict[str, Any]]) -> bool:
    """Whether a search for the added tokens finds them as the tokenizer does: none strips spaces, none overlaps."""
    if any(token.get("lstrip") or token.get("rstrip") or token.get("single_word") for token in added):
        return False
    texts = [token["content"] for token in added]
    firsts = {text[0] for text in texts}
    return not any(character.isspace() or character in firsts for text in texts for character in text[1:])
