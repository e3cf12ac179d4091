"""What every row of a source is turned into: a Talk, then a Pair, or the reason why there is none.

A Talk is what was said, free of any writing; a Pair is how NeMo-Aligner's DPO reads it. Between them stands a prompt
format (see prompt_formats), before them the form of the source (see forms).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Drop(str, Enum):
    """Why a row of the source is not in the output. The value is what dataset.json and the summary call it."""

    NOT_JSON = "not JSON"
    WRONG_KEYS = "missing or wrong keys"
    NOT_TEXT = "not encodable as UTF-8"
    CONTROL = "control characters"
    ROLE = "a role other than system, user, assistant"
    TURN_ORDER = "broken turn order"
    EMPTY_TURN = "empty turn in the prompt"
    PROMPTS_DIFFER = "prompts differ"
    EMPTY_RESPONSE = "empty response"
    EQUAL_RESPONSES = "equal responses"
    MARKER = "a marker of the format inside a text"
    TEMPLATE = "not as the chat template wants it"
    DUPLICATE = "duplicate"
    OTHER_SPLIT = "prompt is in another split"
    TOKENS_MERGE = "tokens merge at the prompt's end"
    TOO_LONG = "over --max-tokens"
    NOT_ASKED_FOR = "beyond the number asked for"


class Mend(str, Enum):
    """What was changed of a row so that it could be kept; counted like the drops."""

    BORDER = "border moved to where tokens end"
    CUT = "oldest turns cut off"


class BadRow(ValueError):
    """A row that is not of the source's form (a key missing, not a string): the file is probably another one."""


#: Bytes that no text has use for: C0 but for tab and line ends, and DEL.
_CONTROL = bytes(code for code in (*range(32), 127) if code not in b"\t\n\r")


@dataclass(frozen=True)
class Talk:
    """`turns` are those of the prompt, the human's first and last, so their number is odd; all texts are stripped.

    `text` is the prompt as it stands in a source of HH's form, which the HH format then keeps to the letter.
    """

    turns: tuple[str, ...]
    chosen: str
    rejected: str
    system: str = ""
    text: str | None = None

    def later(self) -> Talk | None:
        """The talk without its oldest exchange (question and answer); the system prompt stays. None if it has one."""
        if len(self.turns) < 3:
            return None
        return Talk(self.turns[2:], self.chosen, self.rejected, self.system)


def talk(turns: Sequence[str], chosen: str, rejected: str, system: str = "", text: str | None = None) -> Talk | Drop:
    """A Talk of stripped texts in an order that was checked, or what is wrong with the texts."""
    if not all(turns):
        return Drop.EMPTY_TURN
    if not chosen or not rejected:
        return Drop.EMPTY_RESPONSE
    if chosen == rejected:
        return Drop.EQUAL_RESPONSES
    try:
        data = "\n".join((system, *turns, chosen, rejected)).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return Drop.NOT_TEXT
    if len(data.translate(None, _CONTROL)) != len(data):
        return Drop.CONTROL
    return Talk(tuple(turns), chosen, rejected, system, text)


@dataclass(frozen=True)
class Pair:
    """One preference pair as NeMo-Aligner's DPO wants it: no token may cross from prompt to response.

    `opening` is the first thing the human said; it decides the split. Rewards are only used by the RPO losses; 1 and 0
    are NeMo-Aligner's own defaults.
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

    def moved(self, characters: int) -> Pair:
        """The same texts with the border that many characters further left.

        Both responses then begin alike. That part has the same log-probability on both sides, under the policy and
        under the reference, so that the preference loss does not change.
        """
        at = len(self.prompt) - characters
        part = self.prompt[at:]
        chosen, rejected = part + self.chosen_response, part + self.rejected_response
        return Pair(self.prompt[:at], chosen, rejected, self.opening, self.chosen_reward, self.rejected_reward)

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

    Raises UnicodeEncodeError for text with half a surrogate pair, which `talk` lets through to nobody.
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
