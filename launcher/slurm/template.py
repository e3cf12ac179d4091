"""sbatch scripts that can be submitted as they are read, and that are templates as well.

What is to be filled in stands in comments, in front of what is used where nobody does:

    #= LINE     stands for the next line of the script
    #== LINE    stands for all lines up to one that is `#==` alone

Several such lines in a row stand for it together. They are Jinja2, strict: a name that is not given is an error, and so
is a value that is not a number and went through none of the filters below. All other lines are taken as they are.

    quote   a value as one shell word
    words   a list, each as one shell word
    shell   text that is shell already: a directive, a setup line
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

_LINE, _BLOCK, _END = "#= ", "#== ", "#=="


class Shell(str):
    """Text that may stand in a script as it is."""


def read(name: str) -> str:
    """The text of a template in sbatch/: beside the package in a clone, inside it where it was installed."""
    here = Path(__file__).resolve().parents[1]  # the package `launcher`
    folder = here / "sbatch" if (here / "sbatch").is_dir() else here.parent / "sbatch"
    return (folder / f"{name}.sbatch").read_text(encoding="utf-8")


def render(text: str, **values: Any) -> str:
    """The script with the values filled in. Raises jinja2.UndefinedError, TypeError (a value that is not quoted)."""
    import jinja2

    jinja = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_quoted,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["quote"] = lambda value: Shell(shlex.quote(str(value)))
    jinja.filters["words"] = lambda value: Shell(shlex.join(str(word) for word in value))
    jinja.filters["shell"] = Shell
    source, plain = _source(text)
    return jinja.from_string(source).render(**values, _plain=plain)


def _quoted(value: Any) -> Any:
    if isinstance(value, (Shell, int)) and not isinstance(value, bool):
        return value
    shown = str(value)  # raises UndefinedError where that is what is the matter
    raise TypeError(f"{shown!r} would stand in a script unquoted: give it to the filter quote, words or shell")


def _source(text: str) -> tuple[str, list[Shell]]:
    """The Jinja2 source of a script, and its own lines, which the source names by their number."""
    source: list[str] = []
    plain: list[Shell] = []
    inside = ""  # the mark whose own lines are being dropped
    for line in text.splitlines(keepends=True):
        indent, word = line[: len(line) - len(line.lstrip())], line.strip()
        mark = next((mark for mark in (_LINE, _BLOCK) if line.lstrip().startswith(mark)), "")
        if inside == _BLOCK and word == _END:
            inside = ""
        elif mark:
            if inside and inside != mark:
                raise ValueError(f"{line!r} stands between `{inside.strip()}` and what that stands for")
            inside = mark
            source.append(indent + line.lstrip().removeprefix(mark))
        elif not inside:
            source.append(f"{{{{ _plain[{len(plain)}] }}}}\n")
            plain.append(Shell(line.rstrip("\n")))
        elif inside == _LINE:
            inside = ""
    if inside:
        raise ValueError(f"the script ends inside `{inside.strip()}`")
    return "".join(source), plain
