"""The kinds of values that keys hold, and the words in which messages describe them."""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

from launcher.engines import ENGINES, module_of
from launcher.units import parse_time_limit

#: OmegaConf's mark of a key that needs a value and has none yet.
NO_VALUE = "???"


class Section(BaseModel):
    """A node of the config. Unknown keys are errors, and so are values of another type: `true` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Allowed(str):
    """In an Annotated type: how a message describes the values that it takes."""


def _fail_unless(good: bool) -> None:
    if not good:
        raise ValueError("not allowed")  # the message describes the type instead


def _text(value: object) -> object:
    """Numbers that YAML read out of a text (a job's name 2024, say) count as one."""
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _not_blank(value: str) -> str:
    _fail_unless(value.strip() not in ("", NO_VALUE))
    return value


def _no_blanks(values: list[str]) -> list[str]:
    _fail_unless(bool(values) and all(value.strip() for value in values))
    return values


def _one_line_each(values: list[str]) -> list[str]:
    _fail_unless(not any("\n" in value for value in values))
    return values


def _positive_or_minus_one(value: int) -> int:
    _fail_unless(value >= 1 or value == -1)
    return value


def _interval(value: int | float) -> int | float:
    _fail_unless(value >= 1 if isinstance(value, int) else 0 < value <= 1)
    return value


def _time_limit(value: int | str) -> int | str:
    _fail_unless(parse_time_limit(value) >= 1)
    return value


def _gpus(value: int | str) -> int | str:
    _fail_unless(bool(re.fullmatch(r"([\w.-]+:)?[1-9]\d*", str(value))))
    return value


def _positions(value: int | str) -> int | str:
    _fail_unless(value == "auto" if isinstance(value, str) else value >= 1)
    return value


def _engine(value: str) -> str:
    _fail_unless(module_of(value) is not None)
    return value


def _precision(value: object) -> object:
    return "32" if type(value) is int and value == 32 else value


def _must_be(expected: bool) -> AfterValidator:
    def check(value: bool) -> bool:
        _fail_unless(value is expected)
        return value

    return AfterValidator(check)


def _rates(values: list[float]) -> list[float]:
    _fail_unless(len(values) == 2 and all(0 <= value < 1 for value in values))
    return values


def _hypotheses(values: list[dict[str, object]]) -> list[dict[str, object]]:
    _fail_unless(all({"beta", "name", "claim"} <= value.keys() for value in values))
    return values


Text: TypeAlias = Annotated[str, BeforeValidator(_text), AfterValidator(_not_blank), Allowed("a text")]
Texts: TypeAlias = Annotated[list[str], AfterValidator(_no_blanks), Allowed("a list of texts, at least one")]
OneFile: TypeAlias = Annotated[list[str], AfterValidator(_no_blanks), Len(1, 1), Allowed("a list of one file")]
Lines: TypeAlias = Annotated[list[str], AfterValidator(_one_line_each), Allowed("a list of texts, each one line")]
#: A whole number stays one: for some keys 1 means another thing than 1.0.
Number: TypeAlias = int | float
CountOrAll: TypeAlias = Annotated[
    int, AfterValidator(_positive_or_minus_one), Allowed("a whole number of at least 1, or -1")
]
Interval: TypeAlias = Annotated[
    int | float,
    AfterValidator(_interval),
    Allowed("steps (a whole number, at least 1) or a fraction of an epoch (a decimal number above 0, up to 1.0)"),
]
TimeLimit: TypeAlias = Annotated[int | str, AfterValidator(_time_limit), Allowed("minutes, or D-HH:MM:SS")]
Gpus: TypeAlias = Annotated[
    int | str, AfterValidator(_gpus), Allowed("a whole number of at least 1, or a type and a number (a100:2)")
]
Positions: TypeAlias = Annotated[
    int | str, AfterValidator(_positions), Allowed("auto, or a whole number of at least 1")
]
Precision: TypeAlias = Annotated[Literal["auto", "bf16", "bf16-mixed", "32"], BeforeValidator(_precision)]
Engine: TypeAlias = Annotated[
    str, AfterValidator(_engine), Allowed(f"{', '.join(ENGINES)}, or a module such as mypackage.engine")
]
Rates: TypeAlias = Annotated[
    list[float], AfterValidator(_rates), Allowed("a list of 2 numbers of at least 0 and below 1")
]
AlwaysTrue: TypeAlias = Annotated[bool, _must_be(True), Allowed("true")]
AlwaysFalse: TypeAlias = Annotated[bool, _must_be(False), Allowed("false")]
Layers: TypeAlias = Annotated[list[int], Allowed("a list of layers, counted from 1")]
Hypotheses: TypeAlias = Annotated[
    list[dict[str, Any]], AfterValidator(_hypotheses), Allowed("a list of {beta, name, claim}")
]
#: A node whose keys are somebody else's: variables of an environment, arguments of a logger.
FreeKeys: TypeAlias = dict[str, Any]

_BOUNDS = ((Gt, "gt", "above"), (Ge, "ge", "of at least"), (Le, "le", "of at most"), (Lt, "lt", "below"))


def allowed(field: FieldInfo) -> str:
    """What the values of a field may be, such as `a whole number of at least 1, or null`."""
    return _allowed(field.annotation, tuple(field.metadata))


def _allowed(annotation: object, metadata: tuple[object, ...]) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *more = get_args(annotation)
        return _allowed(base, (*more, *metadata))
    for text in metadata:
        if isinstance(text, Allowed):
            return str(text)
    if origin in (Union, types.UnionType):
        parts = get_args(annotation)  # a Number is described as one thing
        return ", or ".join(_allowed(part, metadata) for part in parts if not (part is int and float in parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if annotation is type(None):
        return "null"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", object: "anything"}
    for kind, name in names.items():
        if annotation is kind:
            return f"{name} {_bounds(metadata)}".rstrip()
    return "a node with keys below it"


def _bounds(metadata: tuple[object, ...]) -> str:
    return " and ".join(
        f"{word} {getattr(bound, name):g}"
        for kind, name, word in _BOUNDS
        for bound in metadata
        if isinstance(bound, kind)
    )
