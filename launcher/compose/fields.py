"""The vocabulary in which launcher/compose/schema.py says what a key may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TIME_LIMIT = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")


@dataclass(frozen=True)
class Field:
    """What one key may hold. `allows` says it to a person, `accepts` decides, `doc` says what the key does."""

    allows: str
    accepts: Callable[[Any], bool]
    doc: str = ""


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return (is_int(value) or isinstance(value, float)) and math.isfinite(value)


def is_time_limit(value: Any) -> bool:
    """Whether sbatch's --time takes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS (sbatch(1))."""
    return (is_int(value) and value >= 1) or (
        isinstance(value, str) and _TIME_LIMIT.fullmatch(value) is not None and any(c in "123456789" for c in value)
    )


def integer(minimum: int, doc: str = "", also: tuple[Any, ...] = ()) -> Field:
    """A whole number of at least `minimum`, or one of `also`."""
    return Field(
        f"a whole number of at least {minimum}{_or(also)}",
        lambda v: (is_int(v) and v >= minimum) or _among(v, also),
        doc,
    )


def number(
    doc: str = "",
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    also: tuple[Any, ...] = (),
) -> Field:
    """A finite number within the given bounds (`above` and `below` exclude theirs), or one of `also`."""
    words = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("of at least", minimum), ("of at most", maximum), ("below", below))
        if bound is not None
    ]

    def accepts(v: Any) -> bool:
        if _among(v, also):
            return True
        return (
            is_number(v)
            and (above is None or v > above)
            and (minimum is None or v >= minimum)
            and (maximum is None or v <= maximum)
            and (below is None or v < below)
        )

    return Field(f"a finite number {' and '.join(words)}".rstrip() + _or(also), accepts, doc)


def interval(doc: str) -> Field:
    """Steps as a whole number, or a fraction of an epoch as a number with a decimal point."""
    return Field(
        "steps (a whole number, at least 1) or a fraction of an epoch (a decimal number above 0, up to 1.0)",
        lambda v: (is_int(v) and v >= 1) or (isinstance(v, float) and 0 < v <= 1),
        doc,
    )


def flag(doc: str = "") -> Field:
    return Field("true or false", lambda v: isinstance(v, bool), doc)


def choice(*options: Any, doc: str = "") -> Field:
    return Field("one of " + ", ".join(_word(o) for o in options), lambda v: _among(v, options), doc)


def text(doc: str = "", *, null: bool = False) -> Field:
    """A text that is not empty; numbers that YAML read out of a text (a job's name 2024, say) count as one."""
    return Field(
        "a text" + (" or null" if null else ""),
        lambda v: (null and v is None) or (isinstance(v, str) and v.strip() != "") or is_number(v),
        doc,
    )


def texts(doc: str = "") -> Field:
    return Field(
        "a list of texts, at least one",
        lambda v: isinstance(v, list) and len(v) > 0 and all(isinstance(x, str) and x.strip() for x in v),
        doc,
    )


def lines(doc: str = "") -> Field:
    return Field(
        "a list of texts, each one line",
        lambda v: isinstance(v, list) and all(isinstance(x, str) and "\n" not in x for x in v),
        doc,
    )


def numbers(length: int, doc: str = "", *, below: float = math.inf) -> Field:
    return Field(
        f"a list of {length} numbers of at least 0" + (f" and below {below:g}" if below < math.inf else ""),
        lambda v: isinstance(v, list) and len(v) == length and all(is_number(x) and 0 <= x < below for x in v),
        doc,
    )


def anything(doc: str = "") -> Field:
    return Field("anything", lambda v: True, doc)


def fixed(value: Any, why: str) -> Field:
    return Field(f"{_word(value)} ({why})", lambda v: _among(v, (value,)), why)


def _among(value: Any, options: tuple[Any, ...]) -> bool:
    return any(type(value) is type(option) and value == option for option in options)


def _or(options: tuple[Any, ...]) -> str:
    return "".join(f", or {_word(option)}" for option in options)


def _word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
