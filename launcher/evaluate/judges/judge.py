"""What a judge is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt."""

    prompt: str
    """As the model gets it."""
    first: str
    second: str
    messages: Sequence[Mapping[str, str]] | None = None
    """The conversation behind `prompt`, where it is known."""


@dataclass(frozen=True)
class Preferences:
    """What a judge says about some comparisons."""

    values: list[float | None]
    """One a comparison: how sure the judge is that `first` is the better answer, from 0 to 1; 0.5 is a tie. None where
    it gave no verdict."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What belongs beside the result: requests, tokens, the judge's own accuracy."""
    unusable: str = ""
    """Why nothing may be concluded from the preferences; "" where they may be used."""


class Judge(Protocol):
    """Compares answers. The order of the two must not matter: prefer(a, b) = 1 - prefer(b, a)."""

    name: str

    def prefer(self, comparisons: Sequence[Comparison]) -> Preferences: ...
