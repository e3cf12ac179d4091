"""Recognises prompts to which a chat format was already applied, by its markers. On request they are kept unchanged.

If a format were applied twice, the model would see its markers as if a user had typed them.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class _Style(NamedTuple):
    name: str
    user: re.Pattern[str]
    """Opens a turn of the user."""
    assistant: re.Pattern[str]
    """Opens a turn of the assistant: the prompt ends after the last one."""
    end: re.Pattern[str]
    """Ends the turn of the user."""


def _style(name: str, user: str, assistant: str, end: str) -> _Style:
    return _Style(name, re.compile(user), re.compile(assistant), re.compile(end))


_STYLES = (
    _style("llama2", r"\[INST\]", r"\[/INST\]", r"\[/INST\]"),
    _style(
        "llama3",
        r"<\|start_header_id\|>user<\|end_header_id\|>",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n*",
        r"<\|eot_id\|>",
    ),
    _style("chatml", r"<\|im_start\|>user\b", r"<\|im_start\|>assistant\n?", r"<\|im_end\|>"),
    _style("extra_id", r"<extra_id_1>User\b", r"<extra_id_1>Assistant\n?", r"<extra_id_1>"),
    _style("gemma", r"<start_of_turn>user\b", r"<start_of_turn>model\n?", r"<end_of_turn>"),
    _style("zephyr", r"<\|user\|>", r"<\|assistant\|>\n?", r"</s>|<\|end\|>|<\|assistant\|>"),
)
_ANY = re.compile(r"\[/?INST\]|<<SYS>>|<\|start_header_id\|>|<\|im_start\|>|<extra_id_[01]>|<start_of_turn>|<\|user\|>")
_AT_THE_START = re.compile(rf"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(?:{_ANY.pattern})")


class Rendered(NamedTuple):
    """`prompt_end` is the offset at which the assistant's last turn begins; `opening` is the user's first turn."""

    style: str
    prompt_end: int
    opening: str


def find(text: str) -> Rendered | None:
    """The parts of a rendered text; None for plain text, even if it mentions a marker in passing."""
    if _ANY.search(text) is None:
        return None
    for style in _STYLES:
        first = style.user.search(text)
        answers = list(style.assistant.finditer(text, first.end())) if first else []
        if first and answers:
            end = style.end.search(text, first.end())
            opening = text[first.end() : end.start() if end else answers[0].start()].strip()
            return Rendered(style.name, answers[-1].end(), opening)
    if _AT_THE_START.match(text):  # for example such a prompt without its end
        return Rendered("unknown", len(text), text)
    return None
