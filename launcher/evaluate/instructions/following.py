"""Strict and loose scores of an answer to a prompt with instructions (IFEval, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.evaluate.instructions.checkers import follows


def strict(answer: str, instructions: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether the answer follows each instruction, [{"id", "kwargs"}]. Raises ValueError for a damaged instruction."""
    return [follows(answer, it["id"], it.get("kwargs")) for it in instructions]


def loose(answer: str, instructions: Sequence[Mapping[str, Any]]) -> list[bool]:
    """The same where any of eight variants of the answer may follow the instruction."""
    return [any(follows(variant, it["id"], it.get("kwargs")) for variant in variants(answer)) for it in instructions]


def variants(answer: str) -> list[str]:
    """The answer without its first line, its last or both, as an introduction and a closing word may be there by habit;
    each of them also without asterisks, as Markdown's emphasis may break a keyword."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(variant.replace("*", "") for variant in cut)]))
