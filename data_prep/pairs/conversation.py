"""The stages of a row: a Conversation (its turns), then a Pair (the training texts), or the reason to drop it.

`forms` reads a row into a Conversation, `prompt_formats` writes a Conversation as a Pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Drop(str, Enum):
    """Why a row of the source is not in the output. The value is its name in dataset.json and in the summary."""

    NOT_JSON = "not JSON"
    WRONG_KEYS = "missing or wrong keys"
    NOT_TEXT = "not encodable as UTF-8"
    CONTROL = "control characters"
    ROLE = "a role other than system, user, assistant"
    TOOLS = "tools or tool calls"
    NO_PROMPT = "no prompt"
    TURN_ORDER = "broken turn order"
    EMPTY_TURN = "empty turn in the prompt"
    PROMPTS_DIFFER = "prompts differ"
    EMPTY_RESPONSE = "empty response"
    EQUAL_RESPONSES = "equal responses"
    TIE = "no response is preferred"
    RENDERED = "prompt is rendered already"
    MARKER = "a marker of the format inside a text"
    TEMPLATE = "not as the chat template wants it"
    DUPLICATE = "duplicate"
    OTHER_SPLIT = "prompt is in another split"
    TOKENS_MERGE = "tokens merge at the prompt's end"
    TOO_LONG = "over --max-tokens"
    NOT_ASKED_FOR = "beyond the number asked for"


class Repair(str, Enum):
    """What was changed in a row so that it could be kept; counted like the drops."""

    BORDER = "border moved to where tokens end"
    CUT = "oldest turns cut off"
    LOWER_REWARD = "kept though the rejected response has the higher reward (see --chosen)"


class BadRow(ValueError):
    """A row does not have the source's form: a key is missing, or its value has another type.

    `remedy` says what to do, or is "" if the only remedy is to correct the line.
    """

    drop = Drop.WRONG_KEYS

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy


#: Bytes that no text needs: the C0 control characters except tab and line ends, and DEL.
_CONTROL = bytes(code for code in (*range(32), 127) if code not in b"\t\n\r")

#: (reward of the chosen response, reward of the rejected response)
Rewards = tuple[float, float]


class Conversation(NamedTuple):
    """`turns` are the prompt's. The human has the first and the last, so their number is odd. All texts are stripped.

    `text` is the prompt exactly as in the source, for prompts that must not change: those in HH's form, and `rendered`
    ones, which have the markers of a chat format (then the responses are unchanged too).
    `rewards` is None if the source has no rewards.
    """

    turns: tuple[str, ...]
    chosen: str
    rejected: str
    system: str = ""
    text: str | None = None
    rewards: Rewards | None = None
    rendered: bool = False

    def without_oldest_exchange(self) -> Conversation | None:
        """A copy without the oldest question and answer, system prompt kept. None if there is only one question."""
        if len(self.turns) < 3 or self.rendered:
            return None
        return self._replace(turns=self.turns[2:], text=None)


def make_conversation(
    turns: Sequence[str],
    chosen: str,
    rejected: str,
    system: str = "",
    text: str | None = None,
    rewards: Rewards | None = None,
) -> Conversation | Drop:
    """A Conversation, or the reason to drop it. The caller has stripped the texts and checked the order of turns."""
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
    return Conversation(tuple(turns), chosen, rejected, system, text, rewards)


class Pair(NamedTuple):
    """One preference pair as NeMo-Aligner's DPO reads it: no token may cross from prompt to response.

    `opening` is the first thing the human said; it decides the split. Only the RPO losses use rewards.
    """

    prompt: str
    chosen_response: str
    rejected_response: str
    opening: str
    rewards: Rewards | None = None

    def row(self) -> dict[str, str | float]:
        """The five keys that NeMo-Aligner reads; pairs without rewards get its defaults, 1 and 0."""
        chosen_reward, rejected_reward = self.rewards or (1.0, 0.0)
        return {
            "prompt": self.prompt,
            "chosen_response": self.chosen_response,
            "rejected_response": self.rejected_response,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
        }

    def with_border_moved(self, characters: int) -> Pair:
        """The same texts with the border between prompt and response `characters` further left.

        Both responses then begin alike. That part has the same log-probability on both sides, under the policy and
        under the reference, so that the preference loss does not change.
        """
        at = len(self.prompt) - characters
        part = self.prompt[at:]
        return self._replace(
            prompt=self.prompt[:at],
            chosen_response=part + self.chosen_response,
            rejected_response=part + self.rejected_response,
        )

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

    Raises UnicodeEncodeError for text with half a surrogate pair; `make_conversation` drops such rows.
    """
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))  # so that ("ab", "c") and ("a", "bc") differ
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def _folded(text: str) -> str:
    """Remove differences in spacing and case: "Hi  there" in training and "hi there" in the test is the same prompt."""
    return " ".join(text.split()).casefold()
