"""Where pairs come from: the project's own sample, HH-RLHF or another set of the hub by name, a file, a folder.

A source lists its pools (see splits.POOLS) and opens each as a stream of Records, so memory is constant for a data set
of any size. Its `facts` show whether it has changed.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep import mistaken_paths
from data_prep.pairs import containers, hub, tables
from data_prep.pairs.containers import ENDS
from data_prep.pairs.forms import KEYS
from data_prep.pairs.hub import HH_NAME, HH_REVISION, HH_SUBSETS, Opener
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused
from launcher.whole_file import sha256

SAMPLE = Path(__file__).resolve().parents[1] / "sample" / "pairs.jsonl"
NAMES = {"sample": "sample", "hh_rlhf": "hh_rlhf", HH_NAME: "hh_rlhf", "hh-rlhf": "hh_rlhf"}
KINDS = "a folder, or a file of JSON Lines, JSON, CSV, Parquet or Arrow"
#: Files of data sets that do not hold rows.
_NOT_ROWS = re.compile(r"(dataset_infos?|dataset_dict|state|config|dataset|package|adapter_config)\.json$")


@dataclass(frozen=True)
class Reading:
    """How files are read: the columns of tables, and the encoding of texts."""

    columns: frozenset[str] = KEYS
    encoding: str = "utf-8"


@dataclass
class Source:
    """`facts` goes into dataset.json; `list_pools` returns the `pools`, which may need the network."""

    name: str
    list_pools: Callable[[], dict[str, Opener]]
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    fixed: bool = True  # False: we cannot tell whether it has changed
    default_sizes: tuple[float | int, float | int] = field(default=(0.05, 0.05))

    @cached_property
    def pools(self) -> dict[str, Opener]:
        """{pool: opener} in reading order: the training rows first."""
        return self.list_pools()


def find(
    word: str,
    subsets: tuple[str, ...] = (),
    revision: str | None = None,
    only: tuple[str, ...] = (),
    reading: Reading = Reading(),
) -> Source:
    """The source that `word` names; `only` names the splits to take. Raises Refused if there is none."""
    name, path = NAMES.get(word), Path(word).expanduser()
    of_hub = name == "hh_rlhf" or (name is None and not path.exists())
    _check_fit("--revision", revision or "", of_hub, "a set of the hub")
    _check_fit("--splits", ",".join(only), name is None and not path.is_file(), "a folder or a set of the hub")
    _check_fit("--subset", ",".join(subsets), name != "sample" and not path.is_file(), "HH-RLHF, a folder or a hub set")
    if name == "sample":
        note = "made up for this project, see data_prep/sample/README.md"
        # 360 pairs: 288 to train on, 32 and 40 held out; all multiples of 8, so that global batches come out even.
        return _local("sample", [("all", [SAMPLE])], Reading(), {"note": note}, sizes=(32, 40))
    if name == "hh_rlhf":
        return _hh_rlhf(subsets or HH_SUBSETS, revision or HH_REVISION)
    if path.exists() and (known := mistaken_paths.describe(path)) is not None:
        raise Refused([Finding("SOURCE", word, *known)])
    if path.is_dir():
        return _folder(path, subsets, only, reading)
    if path.is_file():
        return _local(_stem(path), [("all", [path])], reading)
    if is_of_hub(word):
        return _of_hub(word, subsets, revision or "main", only, reading)
    near = difflib.get_close_matches(word, NAMES, 1)
    remedy = f"did you mean {near[0]}?" if near else f"give sample, hh_rlhf, OWNER/NAME of the hub, {KINDS}"
    raise Refused([Finding("SOURCE", word, "no such file, folder or known set", remedy)])


def is_of_hub(word: str) -> bool:
    """Whether `word` is OWNER/NAME, and not a path whose last part was mistyped."""
    return hub.is_name(word) and not Path(word).parent.exists()


def _check_fit(option: str, value: str, fits: bool, what: str) -> None:
    if value and not fits:
        raise Refused([Finding(option, value, f"applies only to {what}, which SOURCE is not", "leave it out")])


# -- files -------------------------------------------------------------------------------------------------------------


def _local(
    name: str,
    pools: list[tuple[str, list[Path]]],
    reading: Reading,
    facts: dict[str, object] | None = None,
    sizes: tuple[float | int, float | int] = (0.05, 0.05),
) -> Source:
    """`pools` are files, or folders written with save_to_disk."""
    named = [(pool, path, file) for pool, paths in pools for path in paths for file in _files(path)]
    try:
        prints = [
            {"pool": pool, "name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)}
            for pool, _, file in named
        ]
    except OSError as error:
        where, why = str(error.filename or name), error.strerror or str(error)
        raise Refused([Finding(where, "", f"cannot be read ({why})", "check its permissions")]) from error
    openers = {pool: _opener(paths, reading) for pool, paths in pools}
    files = tuple(file for _, _, file in named)
    return Source(name, lambda: openers, {"name": name, **(facts or {}), "files": prints}, files, default_sizes=sizes)


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.arrow")) if path.is_dir() else [path]


def _opener(paths: list[Path], reading: Reading) -> Opener:
    def rows(path: Path, at: Callable[[float], None]) -> Iterator[Record]:
        if path.is_dir():
            return tables.read_saved(path, at, reading.columns)
        return containers.read(path, at, reading.columns, reading.encoding)

    return _chain([functools.partial(rows, path) for path in paths])


def _folder(folder: Path, subsets: tuple[str, ...], only: tuple[str, ...], reading: Reading) -> Source:
    """Files named train*, validation* (valid, val, dev) and test* are these splits, as in a copy of HH-RLHF's folders.

    If no file is named train*, all files are one pool. From a whole copy of HH-RLHF, its four sets of pairs are read.
    """
    if (saved := tables.saved_splits(folder)) is not None:
        return _local(_stem(folder), _pools(list(saved.items()), only, str(folder)), reading)
    subsets = subsets or tuple(subset for subset in HH_SUBSETS if (folder / subset).is_dir())
    roots = [folder / subset for subset in subsets] or [folder]
    missing = [root for root in roots if not root.is_dir()]
    if missing:
        raise Refused([Finding("--subset", root.name, f"no such folder in {folder}", "") for root in missing])
    files = sorted(path for root in roots for path in root.rglob("*") if _is_data(path.relative_to(folder), path))
    if not files:
        where = ", ".join(map(str, roots))
        raise Refused(
            [
                Finding(
                    where,
                    "",
                    "contains no .jsonl, .json, .csv, .tsv, .parquet or .arrow",
                    "name a folder or file that does",
                )
            ]
        )
    return _local(_stem(folder), _pools([(_split_name(path), path) for path in files], only, str(folder)), reading)


def _pools(named: list[tuple[str, Any]], only: tuple[str, ...], where: str) -> list[tuple[str, list[Any]]]:
    """Group (split name, item) pairs by pool: returns [(pool, items)]. Raises Refused."""
    if unknown := set(only) - {name for name, _ in named}:
        names = ", ".join(sorted({name for name, _ in named}))
        raise Refused([Finding("--splits", name, f"no such split in {where}", f"it has {names}") for name in unknown])
    named = [(name, item) for name, item in named if not only or name in only]
    pools: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    others: list[tuple[str, Any]] = []
    for name, item in named:
        if (split := _split_of(name)) is None:
            others.append((name, item))
        else:
            pools[split].append(item)
    if not pools["train"]:
        return [("all", [item for _, item in named])]
    if others:
        why = f"is not one of the splits train, validation, test, although {where} has a train split"
        remedy = "leave it out, or choose what to read with --splits, --subset or a single file as SOURCE"
        raise Refused([Finding(str(item), "", why, remedy) for _, item in others])
    if pools["test"] and pools["validation"]:
        return list(pools.items())
    held_out = pools["test"] or pools["validation"]
    return [("train", pools["train"]), ("held_out", held_out)] if held_out else [("all", pools["train"])]


def _is_data(inside: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return path.is_file() and not hidden and bool(ENDS.search(path.name)) and not _NOT_ROWS.match(path.name)


def _split_name(path: Path) -> str:
    """train_prefs-00000-of-00001.parquet -> train_prefs"""
    return re.sub(r"-\d+(-of-\d+)?$", "", ENDS.sub("", path.name))


def _split_of(name: str) -> str | None:
    match = re.match(r"(train|validation|valid|val|dev|test)(?![a-z])", name.lower())
    word = match[1] if match else None
    return "validation" if word in ("valid", "val", "dev") else word


def _stem(path: Path) -> str:
    return ENDS.sub("", path.resolve().name)


# -- the hub -----------------------------------------------------------------------------------------------------------


def _hh_rlhf(subsets: tuple[str, ...], revision: str) -> Source:
    unknown = [subset for subset in subsets if subset not in HH_SUBSETS]
    if unknown:
        remedy = "use " + ", ".join(HH_SUBSETS)
        raise Refused([Finding("--subset", name, "HH-RLHF has no such subset", remedy) for name in unknown])
    pools = {
        pool: hub.opener(HH_NAME, subsets, split, revision)
        for pool, split in (("train", "train"), ("held_out", "test"))
    }
    facts = {"name": HH_NAME, "revision": revision, "subsets": list(subsets)}
    return Source("hh_rlhf", lambda: pools, facts, fixed=hub.is_commit(revision))


def _of_hub(name: str, subsets: tuple[str, ...], revision: str, only: tuple[str, ...], reading: Reading) -> Source:
    if len(subsets) > 1:
        why = "only HH-RLHF can be read with several subsets at once"
        raise Refused([Finding("--subset", ",".join(subsets), why, "prepare them one by one")])
    subset = subsets[0] if subsets else None
    commit = hub.resolve(name, revision)

    def pools() -> dict[str, Opener]:
        splits = hub.split_names(name, subset, commit)
        chained = _pools(
            [(split, hub.opener(name, (subset,), split, commit, reading.columns)) for split in splits], only, name
        )
        return {pool: _chain(openers) for pool, openers in chained}

    facts = {"name": name, "revision": commit, "subsets": list(subsets), "splits": list(only)}
    return Source(name.rpartition("/")[2], pools, facts, fixed=hub.is_commit(commit))


def _chain(openers: list[Opener]) -> Opener:
    def records(at: Callable[[float], None]) -> Iterator[Record]:
        for done, opener in enumerate(openers):
            yield from opener(lambda share, done=done: at((done + share) / len(openers)))  # type: ignore[misc]

    return records
