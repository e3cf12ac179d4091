"""Which sweep is meant: by its folder, the id of one of its arrays, a name, or `last`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.sweep.elements import elements
from launcher.sweep.folder import Sweep, Trial

LAST = "last"
ENVIRONMENT = "LAUNCHER_RUNS"
_DEPTH = 4  # folders below `runs` that a sweep may lie in; hydra.sweep.dir is runs/<experiment>/<time>
_ARRAY = re.compile(r"(\d+)(?:_(\d+))?")
_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def roots() -> list[Path]:
    """Where sweeps are looked for: the folders in $LAUNCHER_RUNS, and `runs` here."""
    named = [Path(name).expanduser() for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if name]
    return [*named, Path("runs")]


def folders() -> list[Path]:
    """All sweep folders below the roots, the one that something was last submitted for first."""
    found: dict[Path, float] = {}
    for root in roots():
        for path in _below(root, _DEPTH):
            found.setdefault(path.resolve(), (path / "sweep.json").stat().st_mtime)
    return sorted(found, key=lambda path: found[path], reverse=True)


def _below(folder: Path, depth: int) -> Iterable[Path]:
    """Sweep folders in `folder`, itself included. A sweep's own folders are not entered: it may have thousands."""
    try:
        with os.scandir(folder) as entries:
            inside = list(entries)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    if any(entry.name == "sweep.json" for entry in inside):
        yield folder
    elif depth:
        for entry in inside:
            if entry.is_dir() and not entry.name.startswith("."):
                yield from _below(Path(entry.path), depth - 1)


def sweep(what: str = LAST) -> Sweep:
    """The sweep that `what` names. Raises Refused, with what there is, where there is none or more than one."""
    if (Path(what).expanduser() / "sweep.json").exists():
        return Sweep.load(what)
    if os.sep in what and Path(what).expanduser().exists():
        return Sweep.load(what)  # which says what is wrong with it
    known = folders()
    looked = " and ".join(str(root) for root in roots())
    if not known:
        why = f"no sweep under {looked}"
        remedy = f"name a sweep's folder, or set {ENVIRONMENT} to the folder that your sweeps are in"
        raise Refused([Finding("SWEEP", what, why, remedy)])
    if what == LAST:
        return Sweep.load(known[0])
    if _ARRAY.fullmatch(what):
        found = _by_array(known, int(what.partition("_")[0]))
        if found:
            return found
        raise Refused([Finding("SWEEP", what, f"no sweep under {looked} has submitted this array", "name its folder")])
    return _by_name(known, what, looked)


def _by_array(known: Sequence[Path], number: int) -> Sweep | None:
    for folder in known:
        one = Sweep.load(folder)
        if any(job["kind"] == "slurm" and job["id"] == str(number) for job in one.submitted()):
            return one
    return None


def _by_name(known: Sequence[Path], what: str, looked: str) -> Sweep:
    """By the end of the folder's path, or the sweep's id: one at most; by the experiment: the newest."""
    tail = Path(what).parts
    same = [folder for folder in known if folder.parts[-len(tail) :] == tail]
    if len(same) == 1:
        return Sweep.load(same[0])
    if same:
        there = ", ".join(str(folder) for folder in same[:5])
        raise Refused([Finding("SWEEP", what, f"several sweeps have this name ({there})", "name the folder")])
    loaded = [Sweep.load(folder) for folder in known]
    for one in loaded:
        if what in (one.data.get("id"), one.experiment.get("name"), one.folder.parent.name):
            return one
    names = sorted({str(one.experiment.get("name")) for one in loaded})
    why = f"no sweep under {looked} has this name or id"
    raise Refused([Finding("SWEEP", what, why, f"there are: {', '.join(names[:8])}")])


def trials_and_sweep(words: Sequence[str], named: str | None) -> tuple[Sweep, list[Trial]]:
    """What `cancel 0 2-4 runs/x` means: numbers are trials, the one other word is the sweep, which `--sweep` names too.

    `69_2` is an element of array 69: its sweep, and what trials this element runs. Raises Refused.
    """
    numbers = [word for word in words if _NUMBERS.fullmatch(word)]
    others = [word for word in words if not _NUMBERS.fullmatch(word)]
    if named is not None:
        others.append(named)
    if len({word.partition("_")[0] if _ARRAY.fullmatch(word) else word for word in others}) > 1:
        raise Refused([Finding("SWEEP", " ".join(others), "more than one sweep", "name one")])
    one = sweep(others[0]) if others else sweep()
    chosen = {number for word in numbers for number in _numbers(word)}
    named_so = [word for word in others if (found := _ARRAY.fullmatch(word)) and found[2]]
    chosen |= {number for word in named_so for number in _element(one, word)}
    return one, trials(one, chosen)


def trials(one: Sweep, numbers: Iterable[int]) -> list[Trial]:
    """The sweep's trials of these numbers. Raises Refused where it has no such trial."""
    there = {trial.number: trial for trial in one.trials}
    wanted = sorted(set(numbers))
    unknown = [number for number in wanted if number not in there]
    if unknown:
        last = max(there, default=0)
        why = f"sweep {one.folder} has trials 0 to {last}"
        remedy = "choose among them (the id of an array goes to --sweep)"
        raise Refused([Finding("TRIAL", ",".join(map(str, unknown)), why, remedy)])
    return [there[number] for number in wanted]


def _numbers(word: str) -> Iterable[int]:
    for part in word.split(","):
        first, _, last = part.partition("-")
        if int(last or first) - int(first) > 100_000:
            raise Refused([Finding("TRIAL", word, "no sweep has so many trials", "write a shorter range")])
        yield from range(int(first), int(last or first) + 1)


def _element(one: Sweep, word: str) -> list[int]:
    """The trials that an element of an array runs."""
    found = [number for number, parts in elements(one.submitted()).items() if word in (part.name for part in parts)]
    if found:
        return found
    array = word.partition("_")[0]
    raise Refused([Finding("TRIAL", word, f"array {array} has no such element", f"see: status {array}")])
