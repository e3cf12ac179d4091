"""Plain dicts and lists to YAML, fast: 1,000 trials have 1,000 configs, and PyYAML takes 3 ms or more for each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

# A plain (unquoted) scalar that no YAML 1.1 reader takes for anything but text: begins with a letter or slash, and is
# none of the words or numbers below.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+-]+)*\Z", re.ASCII)
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"})
# What YAML allows only as an escape (YAML 1.1, section 4.1.1), less what JSON escapes already.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


def dump(value: dict[str, Any]) -> str:
    """`value` as YAML in block style. Takes dict, list, tuple, str, int, float, bool and None; else TypeError."""
    if not value:
        return "{}\n"
    return "\n".join(_lines(value, "")) + "\n"


def _lines(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", below, indent + "  ")
    else:
        for below in value:
            yield from _entry(f"{indent}-", below, indent + "  ")


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, (dict, list, tuple)):
        if value:
            yield head
            yield from _lines(value, indent)
        else:
            yield f"{head} {{}}" if isinstance(value, dict) else f"{head} []"
    else:
        yield f"{head} {_scalar(value)}"


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _float(float(value))
    if isinstance(value, str):
        if _PLAIN.match(value) and value.lower() not in _NOT_TEXT:
            return value
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(value, ensure_ascii=False))
    raise TypeError(f"{type(value).__name__} has no place in a config: {value!r}")


def _float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    # YAML 1.1 takes 1e-05 for text: a float needs its dot.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text
