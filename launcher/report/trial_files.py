"""Reads a trial's config, metrics and result for the report, and nothing outside the sweep's folder.

A sweep may belong to somebody else. A link in it could point to a private file of the reader, whose content would then
appear in a report that others read; a pipe would hang the reader. So only regular files of the sweep are read.
"""

from __future__ import annotations

import json
import os
import re
import stat
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

from launcher import redact
from launcher.sweep import metrics
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

_LARGEST_CONFIG = 1 << 20  # bytes
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LEFT_OUT = ("cluster", "paths", "exp_manager", "experiment", "wait", "hydra")  # where a trial runs, not what it trains

_SECTION = re.compile(r"([A-Za-z_][\w.-]*):\n")  # a key followed by indented lines only
_KEY = re.compile(r"[A-Za-z_][\w.-]*:(?: .*)?\n?\Z")

Config = Mapping[str, Mapping[str, Any]]
"""config.yaml by its sections. Trials with equal sections share the objects: never change them."""


class Unreadable(Exception):
    """A file of a trial that must not or cannot be read; the message gives the reason."""


def open_file(trial: Trial | Sweep, name: str) -> BinaryIO | None:
    """Open a file in the folder of a trial or sweep (`name` may hold folders); None if it is missing.

    Raises Unreadable.
    """
    path = trial.folder / name
    *folders, last = name.split("/")
    try:
        folder = os.open(trial.folder, _FOLDER)
        try:
            for inner in folders:
                outer, folder = folder, os.open(inner, _FOLDER, dir_fd=folder)
                os.close(outer)
            file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        linked = any(it.is_symlink() for it in (path, path.parent, trial.folder))
        why = "is a link, or in a linked folder" if linked else error.strerror
        raise Unreadable(f"{path}: {why}; it is not read") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Unreadable(f"{path} is not a plain file; it is not read")
    return os.fdopen(file, "rb")


def read(trial: Trial | Sweep, name: str) -> bytes:
    """The content of a file of the trial's folder; b"" if there is none. Raises Unreadable."""
    stream = open_file(trial, name)
    if stream is None:
        return b""
    with stream:
        return stream.read()


def read_result(trial: Trial) -> dict[str, object] | None:
    """result.json; None if it is missing or incomplete, so that the trial is not done. Raises Unreadable."""
    return read_json(trial, "result.json")


def read_json(trial: Trial | Sweep, name: str) -> dict[str, object] | None:
    """The object in a file of JSON; None if it is missing or incomplete. Raises Unreadable."""
    try:
        loaded = json.loads(read(trial, name))
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def read_metrics(trial: Trial) -> Iterator[metrics.Line]:
    """Every complete line of metrics.jsonl, one by one: the file may be large. Raises Unreadable."""
    stream = open_file(trial, "metrics.jsonl")
    if stream is None:
        return
    with stream:
        for raw in stream:
            line = metrics.parse_line(raw.rstrip(b"\n"))
            if line is not None:
                yield line


def read_config(trial: Trial) -> Config:
    """config.yaml, {} if there is none. Raises Unreadable."""
    content = read(trial, "config.yaml")
    if len(content) > _LARGEST_CONFIG:
        raise Unreadable(f"{trial.folder / 'config.yaml'} is larger than any config; it is not read")
    try:
        loaded = _mapping(content.decode())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{trial.folder / 'config.yaml'} cannot be read: {' '.join(str(error).split())}") from error
    return {name: value if isinstance(value, dict) else {"": value} for name, value in loaded.items()}


def _mapping(text: str) -> dict[str, object]:
    """Parse a block of YAML, key by key: most keys have the same text in all of a sweep's thousands of trials.

    Raises ValueError if it is not YAML.
    """
    lines: list[list[str]] = []
    for line in text.splitlines(keepends=True):
        if not lines or not (line[0].isspace() or line.startswith("- ")):
            lines.append([])
        lines[-1].append(line)
    mapping: dict[str, Any] = {}
    for part in lines:
        mapping.update(_part("".join(part)))
    return mapping


@lru_cache(maxsize=4096)
def _part(text: str) -> dict[str, object]:
    """{key: value} of one key. Never change it: equal texts share one object."""
    section = _SECTION.match(text)
    inside = textwrap.dedent(text[section.end() :]) if section else ""
    if section and inside and all(line[0].isspace() or _KEY.match(line) for line in inside.splitlines(keepends=True)):
        return {section[1]: _mapping(inside)}  # no list, comment or scalar of several lines
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # The launcher writes no aliases; with aliases, a small file can expand to gigabytes.
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            raise ValueError("it has aliases")
        loaded = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return {str(name): value for name, value in loaded.items()} if isinstance(loaded, dict) else {}


def differences(configs: Mapping[int, Config]) -> list[tuple[str, dict[int, str]]]:
    """(key, its value in each trial, by number) of keys that differ; secrets are hidden. {}: a config is not known."""
    known = {number: config for number, config in configs.items() if config}
    rows = []
    for section in sorted({name for config in known.values() for name in config} - set(_LEFT_OUT)):
        own = {number: config.get(section, {}) for number, config in known.items()}
        flat = {id(part): dict(_leaves(part, section)) for part in own.values()}
        if len(flat) < 2:
            continue
        values = list(flat.values())
        first = values[0]
        keys = {key for other in values for key in first.keys() | other.keys() if first.get(key) != other.get(key)}
        for key in sorted(keys):
            shown = {part: _shown(redact.config(leaves.get(key), key)) for part, leaves in flat.items()}
            if len(set(shown.values())) > 1:
                rows.append((key, {n: shown[id(own[n])] if n in own else "?" for n in configs}))
    return rows


def _leaves(node: Mapping[str, object], prefix: str) -> Iterable[tuple[str, object]]:
    for name, value in node.items():
        key = f"{prefix}.{name}" if name else prefix
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
