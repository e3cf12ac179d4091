"""Where pairs come from: the project's own sample, Anthropic's HH-RLHF by name, a local file or a local folder.

A source lists its pools (see splits.POOLS) and opens each as a stream of Records, so that a set of any size passes
through in flat memory; its fingerprint says whether it is what it was.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep import jsonl
from data_prep.jsonl import Record
from launcher.findings import Finding, Refused

SAMPLE = Path(__file__).resolve().parent / "sample" / "pairs.jsonl"
HH_NAME = "Anthropic/hh-rlhf"
HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"  # pinned, so that a set prepared later is the same set
HH_SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
NAMES = {"sample": "sample", "hh_rlhf": "hh_rlhf", HH_NAME: "hh_rlhf", "hh-rlhf": "hh_rlhf"}

Opener = Callable[[Callable[[float], None]], Iterator[Record]]


@dataclass(frozen=True)
class Source:
    """`pools` in the order in which they are read: the training rows first. `facts` goes into dataset.json."""

    name: str
    pools: dict[str, Opener]
    facts: dict[str, Any]
    files: tuple[Path, ...] = ()
    fixed: bool = True  # False: nothing tells whether it has changed since it was last read
    default_sizes: tuple[float | int, float | int] = field(default=(0.05, 0.05))


def find(word: str, subsets: tuple[str, ...] = (), revision: str = HH_REVISION) -> Source:
    """The source that `word` names. Raises Refused where there is none."""
    name = NAMES.get(word)
    if name == "sample":
        note = "made up for this project, see data_prep/sample/README.md"
        # 360 pairs: 288 to train on, 32 and 40 held out; all multiples of 8, so that global batches come out even.
        return _local("sample", [("all", [SAMPLE])], {"note": note}, sizes=(32, 40))
    if name == "hh_rlhf":
        return _hh_rlhf(subsets or HH_SUBSETS, revision)
    path = Path(word).expanduser()
    if path.is_dir():
        return _folder(path, subsets)
    if path.is_file():
        return _local(_stem(path), [("all", [path])])
    near = difflib.get_close_matches(word, NAMES, 1)
    remedy = f"did you mean {near[0]}?" if near else "give sample, hh_rlhf, a folder, a .jsonl or a .jsonl.gz"
    raise Refused([Finding("SOURCE", word, "no such file, folder or known set", remedy)])


def _local(
    name: str,
    pools: list[tuple[str, list[Path]]],
    facts: dict[str, Any] | None = None,
    sizes: tuple[float | int, float | int] = (0.05, 0.05),
) -> Source:
    files = tuple(path for _, paths in pools for path in paths)
    try:
        prints = [
            {"pool": pool, "name": path.name, "bytes": path.stat().st_size, "sha256": jsonl.sha256(path)}
            for pool, paths in pools
            for path in paths
        ]
    except OSError as error:
        where, why = str(error.filename or files[0]), error.strerror or str(error)
        raise Refused([Finding(where, "", f"cannot be read ({why})", "check its permissions")]) from error
    openers = {pool: _opener(pool_files) for pool, pool_files in pools}
    return Source(name, openers, {"name": name, **(facts or {}), "files": prints}, files, default_sizes=sizes)


def _opener(paths: list[Path]) -> Opener:
    def records(at: Callable[[float], None]) -> Iterator[Record]:
        for done, path in enumerate(paths):
            yield from jsonl.read(path, lambda share, done=done: at((done + share) / len(paths)))  # type: ignore[misc]

    return records


def _folder(folder: Path, subsets: tuple[str, ...]) -> Source:
    """Files named train*, validation* (valid, val, dev) and test* are these splits, as in a copy of HH-RLHF's folders.

    In a folder without any train*, all files are one pool. Of a whole copy of HH-RLHF its four sets of pairs are taken.
    """
    subsets = subsets or tuple(subset for subset in HH_SUBSETS if (folder / subset).is_dir())
    roots = [folder / subset for subset in subsets] or [folder]
    missing = [root for root in roots if not root.is_dir()]
    if missing:
        raise Refused([Finding("--subset", root.name, f"no such folder in {folder}", "") for root in missing])
    files = sorted(path for root in roots for path in root.rglob("*") if _is_data(path.relative_to(folder), path))
    if not files:
        where = ", ".join(map(str, roots))
        raise Refused([Finding(where, "", "holds no .jsonl or .jsonl.gz", "name the folder or the file that does")])
    pools: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    others: list[Path] = []
    for path in files:
        pools.get(_split_of(path) or "", others).append(path)
    if not pools["train"]:
        return _local(_stem(folder), [("all", files)])
    if others:
        why = f"is none of the splits, while {pools['train'][0].name} is one"
        remedy = "move it away, or give --subset or the one file"
        raise Refused([Finding(str(path), "", why, remedy) for path in others])
    if pools["test"] and not pools["validation"]:
        return _local(_stem(folder), [("train", pools["train"]), ("held_out", pools["test"])])
    if pools["validation"] and not pools["test"]:
        return _local(_stem(folder), [("train", pools["train"]), ("held_out", pools["validation"])])
    if not pools["test"]:
        return _local(_stem(folder), [("all", pools["train"])])
    return _local(_stem(folder), list(pools.items()))


def _is_data(inside: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return path.is_file() and not hidden and path.name.endswith((".jsonl", ".jsonl.gz"))


def _split_of(path: Path) -> str | None:
    match = re.match(r"(train|validation|valid|val|dev|test)(?![a-z])", path.name.lower())
    word = match[1] if match else None
    return "validation" if word in ("valid", "val", "dev") else word


def _stem(path: Path) -> str:
    return path.resolve().name.removesuffix(".gz").removesuffix(".jsonl")


def _hh_rlhf(subsets: tuple[str, ...], revision: str) -> Source:
    unknown = [subset for subset in subsets if subset not in HH_SUBSETS]
    if unknown:
        remedy = "use " + ", ".join(HH_SUBSETS)
        raise Refused([Finding("--subset", name, "HH-RLHF has no such", remedy) for name in unknown])

    def opener(split: str) -> Opener:
        def records(at: Callable[[float], None]) -> Iterator[Record]:
            for done, subset in enumerate(subsets):
                rows = _load(subset, split, revision)
                for number, row in enumerate(rows):
                    if number % 256 == 0:
                        at((done + number / len(rows)) / len(subsets))
                    yield Record(f"{HH_NAME} {subset} {split}, row {number + 1}", row)

        return records

    facts = {"name": HH_NAME, "revision": revision, "subsets": list(subsets)}
    commit = re.fullmatch("[0-9a-f]{40}", revision) is not None
    return Source("hh_rlhf", {"train": opener("train"), "held_out": opener("test")}, facts, fixed=commit)


def _load(subset: str, split: str, revision: str) -> Any:
    """One split, as `datasets` keeps it on the disk: fetched once, mapped into memory and not read into it."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        why, remedy = "needs the package 'datasets'", "pip install '.[data]'"
        raise Refused([Finding("SOURCE", "hh_rlhf", why, remedy)]) from error
    try:
        return load_dataset(HH_NAME, data_dir=subset, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        why = f"{subset} at {revision[:12]} cannot be loaded ({error})"
        remedy = "where there is no network, give a folder with harmless-base/train.jsonl.gz and so on as SOURCE"
        raise Refused([Finding("SOURCE", HH_NAME, why, remedy)]) from error
