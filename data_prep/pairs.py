"""What every source format is turned into: a preference pair, or the reason why there is none.

A format is a function `row -> Pair | Drop`, which raises `BadRow` for a row that is not of its form; see hh_format.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum


class Drop(str, Enum):
    """Why a row of the source is not in the output. The value is what dataset.json and the summary call it."""

    NOT_JSON = "not JSON"
    WRONG_KEYS = "missing or wrong keys"
    NOT_TEXT = "not encodable as UTF-8"
    TURN_ORDER = "broken turn order"
    EMPTY_TURN = "empty turn in the prompt"
    PROMPTS_DIFFER = "prompts differ"
    EMPTY_RESPONSE = "empty response"
    EQUAL_RESPONSES = "equal responses"
    DUPLICATE = "duplicate"
    OTHER_SPLIT = "prompt is in another split"
    TOKENS_MERGE = "tokens merge at the prompt's end"
    TOO_LONG = "over --max-tokens"
    NOT_ASKED_FOR = "beyond the number asked for"


class BadRow(ValueError):
    """A row that is not of the format's form (a key missing, not a string): the file is probably another one."""


@dataclass(frozen=True)
class Pair:
    """One preference pair as NeMo-Aligner's DPO wants it.

    `prompt` ends without whitespace and each response begins with exactly one space, so that byte-level BPE tokenizers
    do not merge a token across the border. `opening` is the first thing the human said; it decides the split.
    Rewards are only used by the RPO losses; 1 and 0 are NeMo-Aligner's own defaults.
    """

    prompt: str
    chosen_response: str
    rejected_response: str
    opening: str
    chosen_reward: float = 1.0
    rejected_reward: float = 0.0

    def row(self) -> dict[str, str | float]:
        """The five keys NeMo-Aligner reads."""
        return {
            "prompt": self.prompt,
            "chosen_response": self.chosen_response,
            "rejected_response": self.rejected_response,
            "chosen_reward": self.chosen_reward,
            "rejected_reward": self.rejected_reward,
        }

    def longer_side(self) -> int:
        """Characters of prompt + the longer response."""
        return len(self.prompt) + max(len(self.chosen_response), len(self.rejected_response))

    def row_hash(self) -> int:
        return hash64(self.prompt, self.chosen_response, self.rejected_response)

    def prompt_hash(self) -> int:
        return hash64(_folded(self.prompt))

    def opening_hash(self) -> int:
        return hash64(_folded(self.opening))


def hash64(*texts: str) -> int:
    """A 64-bit hash that is the same on every machine and in every process (unlike `hash`).

    Raises UnicodeEncodeError for text with half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))  # so that ("ab", "c") and ("a", "bc") differ
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def _folded(text: str) -> str:
    """Spacing and capitals do not make another question: "Hi  there" may not be trained on and "hi there" tested."""
    return " ".join(text.split()).casefold()
