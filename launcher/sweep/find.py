"""Finds the sweep that a user names: by its folder, the id of one of its arrays, a name, or `last`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.sweep.array_elements import elements
from launcher.sweep.folder import Sweep
from launcher.sweep.trial import Trial

LAST = "last"
ENVIRONMENT = "LAUNCHER_RUNS"
_DEPTH = 4  # folders below `runs` that a sweep may lie in; hydra.sweep.dir is runs/<experiment>/<time>
_ARRAY = re.compile(r"(\d+)(?:_(\d+))?")
_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_MOST_TRIALS = 100_000  # in a range


def roots() -> list[Path]:
    """Where sweeps are looked for: the folders in $LAUNCHER_RUNS, and `runs` here."""
    named = [Path(name).expanduser() for name in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if name]
    return [*named, Path("runs")]


def folders() -> list[Path]:
    """All sweep folders below the roots, the most recently submitted first."""
    times: dict[Path, float] = {}
    for root in roots():
        for path in _below(root, _DEPTH):
            times.setdefault(path.resolve(), (path / "sweep.json").lstat().st_mtime)
    return sorted(times, key=lambda path: times[path], reverse=True)


def _below(folder: Path, depth: int) -> Iterable[Path]:
    """Sweep folders in `folder`, which may itself be one. Does not search inside a sweep: it may have thousands."""
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
    """The sweep that `what` names. Raises Refused, with the existing sweeps, if none or several match."""
    named = os.path.expanduser(what)
    if os.path.exists(f"{named}/sweep.json") or (os.sep in what and os.path.exists(named)):
        return Sweep.load(what)  # raises Refused with what is wrong with the folder
    known = folders()
    looked = " and ".join(str(root) for root in roots())
    if not known:
        why = f"no sweep under {looked}"
        remedy = f"name a sweep's folder, or set {ENVIRONMENT} to the folder that your sweeps are in"
        raise Refused([Finding("SWEEP", what, why, remedy)])
    if what == LAST:
        return _newest_own(known, looked)
    by_tail = _by_tail(known, what)
    if by_tail:
        return by_tail
    loaded = _readable(known)
    number = _ARRAY.fullmatch(what)
    for candidate in loaded:
        if number and any(job.kind in ("slurm", "evaluation") and job.id == number[1] for job in candidate.submitted()):
            return candidate
    for candidate in loaded:
        if what in (candidate.data.get("id"), str(candidate.experiment.get("name")), candidate.folder.parent.name):
            return candidate
    if number:
        raise Refused([Finding("SWEEP", what, f"no sweep under {looked} has submitted this array", "name its folder")])
    names = sorted({str(candidate.experiment.get("name")) for candidate in loaded})
    why = f"no sweep under {looked} has this name or id"
    raise Refused([Finding("SWEEP", what, why, f"there are: {', '.join(names[:8])}")])


def _newest_own(known: Sequence[Path], looked: str) -> Sweep:
    """The user's own most recently submitted sweep. Others' sweeps do not count: commands act on `last` unseen."""
    for folder in known:
        if (folder / "sweep.json").lstat().st_uid == os.geteuid():
            return Sweep.load(folder)
    why = f"the {len(known)} sweeps under {looked} belong to other users"
    raise Refused([Finding("SWEEP", LAST, why, f"name one by its folder, such as {known[0]}")])


def _by_tail(known: Sequence[Path], what: str) -> Sweep | None:
    """The sweep whose folder's path ends with `what`, or None. Raises Refused if there are several."""
    tail = Path(what).parts
    same = [folder for folder in known if folder.parts[-len(tail) :] == tail]
    if len(same) > 1:
        there = ", ".join(str(folder) for folder in same[:5])
        raise Refused([Finding("SWEEP", what, f"several sweeps have this name ({there})", "name the folder")])
    return Sweep.load(same[0]) if same else None


def _readable(known: Sequence[Path]) -> list[Sweep]:
    """The sweeps that can be read. A damaged or newer sweep must not hide the others."""
    loaded = []
    for folder in known:
        try:
            loaded.append(Sweep.load(folder))
        except Refused as refused:
            print(f"warning: {refused}; it is left out of the search", file=sys.stderr)
    return loaded


def trials_and_sweep(words: Sequence[str], named: str | None) -> tuple[Sweep, list[Trial]]:
    """Parse `cancel 0 2-4 runs/x`: numbers are trials; one other word may name the sweep, as `--sweep` (`named`) does.

    `69_2`, an element of array 69, names its sweep and the trials that it runs. Without numbers, returns no trials, and
    the commands take all. Raises Refused.
    """
    numbers = [word for word in words if _NUMBERS.fullmatch(word)]
    others = [word for word in words if not _NUMBERS.fullmatch(word)]
    if named is not None:
        others.append(named)
    if len({word.partition("_")[0] if _ARRAY.fullmatch(word) else word for word in others}) > 1:
        raise Refused([Finding("SWEEP", " ".join(others), "more than one sweep", "name one")])
    named_sweep = sweep(others[0]) if others else sweep()
    chosen = {number for word in numbers for number in _numbers(word)}
    element_names = [word for word in others if (match := _ARRAY.fullmatch(word)) and match[2]]
    chosen |= {number for word in element_names for number in _trials_of(named_sweep, word)}
    return named_sweep, trials(named_sweep, chosen)


def trials(sweep: Sweep, numbers: Iterable[int]) -> list[Trial]:
    """The sweep's trials with these numbers. Raises Refused if one does not exist."""
    there = {trial.number: trial for trial in sweep.trials}
    wanted = sorted(set(numbers))
    unknown = [number for number in wanted if number not in there]
    if unknown:
        last = max(there, default=0)
        why = f"sweep {sweep.folder} has trials 0 to {last}"
        remedy = "choose among them (the id of an array goes to --sweep)"
        raise Refused([Finding("TRIAL", ",".join(map(str, unknown)), why, remedy)])
    return [there[number] for number in wanted]


def _numbers(word: str) -> Iterable[int]:
    """The numbers in `0,2-4`. Raises Refused for a reversed range: it would give no trials, which means all."""
    for part in word.split(","):
        first, _, last = part.partition("-")
        span = int(last or first) - int(first)
        if span < 0:
            raise Refused([Finding("TRIAL", word, f"{part} ends before it begins", f"write {last}-{first}")])
        if span > _MOST_TRIALS:
            raise Refused([Finding("TRIAL", word, "no sweep has so many trials", "write a shorter range")])
        yield from range(int(first), int(last or first) + 1)


def _trials_of(sweep: Sweep, element: str) -> list[int]:
    """The trials that an element of an array runs."""
    numbers = [number for number, parts in elements(sweep.submitted()).items() if element in [p.name for p in parts]]
    if numbers:
        return numbers
    array = element.partition("_")[0]
    raise Refused([Finding("TRIAL", element, f"array {array} has no such element", f"see: status {array}")])
