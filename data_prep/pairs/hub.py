"""Reads data sets of the Hugging Face hub with the datasets library, which caches them on disk and memory-maps them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

from data_prep.pairs import tables
from data_prep.pairs.forms import KEYS
from data_prep.pairs.jsonl import Record
from launcher.findings import Finding, Refused

Opener = Callable[[Callable[[float], None]], Iterator[Record]]

HH_NAME = "Anthropic/hh-rlhf"
HH_REVISION = "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"  # pinned, so that a set prepared later is the same set
HH_SUBSETS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")


def is_name(word: str) -> bool:
    """Whether `word` has the form owner/name."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", word) is not None


def is_commit(revision: str) -> bool:
    """Whether `revision` is a commit, whose content never changes, and not a branch or tag."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def resolve(name: str, revision: str) -> str:
    """The commit of a branch or tag of the data set; `revision` itself if the hub cannot be reached."""
    if is_commit(revision):
        return revision
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, revision=revision, timeout=10).sha or revision
    except (ImportError, OSError, ValueError):  # no network, or load_dataset will raise a clearer error
        return revision


def split_names(name: str, subset: str | None, revision: str) -> list[str]:
    """The names of the splits of one configuration of the data set (None: its only one). Raises Refused."""
    with _Refusing(name, subset, revision):
        from datasets import get_dataset_split_names

        return list(get_dataset_split_names(name, subset, revision=revision))


def opener(
    name: str, subsets: tuple[str | None, ...], split: str, revision: str, columns: frozenset[str] = KEYS
) -> Opener:
    """Opens one split of some subsets. HH-RLHF's subsets are folders; those of other data sets are configurations."""

    def records(at: Callable[[float], None]) -> Iterator[Record]:
        for done, subset in enumerate(subsets):
            rows = _load(name, subset, split, revision)
            where = " ".join(word for word in (name, subset, split) if word)
            part = functools.partial(_report_part, at, done, len(subsets))
            yield from tables.read_dataset(rows, where, part, columns)

    return records


def _report_part(at: Callable[[float], None], done: int, of: int, share: float) -> None:
    at((done + share) / of)


def _load(name: str, subset: str | None, split: str, revision: str) -> Any:
    with _Refusing(name, subset, revision):
        from datasets import load_dataset

        which = {"data_dir": subset} if name == HH_NAME else {"name": subset}
        return load_dataset(name, split=split, revision=revision, **which)


class _Refusing:
    """A context manager that turns errors of the datasets library into Refused with a remedy."""

    def __init__(self, name: str, subset: str | None, revision: str) -> None:
        self._name, self._revision = name, revision
        self._what = f"{subset} " if subset else ""

    def __enter__(self) -> None:
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            why, remedy = "needs the package 'datasets'", "pip install '.[data]'"
            raise Refused([Finding("SOURCE", self._name, why, remedy)]) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from datasets.exceptions import DatasetsError

        if isinstance(error, (OSError, ValueError, DatasetsError)):
            why = f"{self._what}at {self._revision[:12]} cannot be loaded ({error})"
            example = "harmless-base/train.jsonl.gz" if self._name == HH_NAME else "train.jsonl or train.parquet"
            remedy = f"without a network, give a folder with {example} and so on as SOURCE"
            raise Refused([Finding("SOURCE", self._name, why, remedy)]) from error
