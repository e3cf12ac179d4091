"""A trial's config.yaml: plain dicts and lists as YAML that PyYAML, OmegaConf and begin_end's pattern read alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from launcher import whole_file

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# Text that every reader reads as text without quotes: it begins with a letter or slash and is none of the words below.
# PyYAML by itself would leave 1e5 unquoted, which OmegaConf reads as a number.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*(?: [A-Za-z0-9_./+-]+)*\Z", re.ASCII)
_NOT_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"})


class _Dumper(_BaseDumper):  # type: ignore[misc]  # the base class is chosen at run time
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.Dumper, value: str) -> yaml.ScalarNode:
    plain = _PLAIN.match(value) and value.lower() not in _NOT_TEXT
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _text)


def dump(config: Mapping[str, object]) -> str:
    """The config in block style. Raises YAMLError for values other than dict, list, text, number, bool, None."""
    text: str = yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 30)
    return text


def read(path: Path) -> dict[str, Any]:
    with whole_file.regular(path) as stream:
        config: dict[str, Any] = yaml.load(stream, Loader=_Loader)
    return config
