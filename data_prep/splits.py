"""Which rows are for training, for validation and for the test.

By hash: a row's place follows from the first thing the human said in it, so a prompt never stands in two splits, nor do
two stages of one conversation, and rows added later move none. By number: openings are put in the order of their hashes
and dealt out until the numbers asked for are reached, so sizes fit a global batch; rows added later may move others.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, 3
NAMES = ("train", "validation", "test")

#: What a source calls its rows' splits. "held_out" is divided between validation and test, "all" between the three.
POOLS = {"all": (TRAIN, VALIDATION, TEST), "train": (TRAIN,), "validation": (VALIDATION,), "test": (TEST,)}
POOLS["held_out"] = (VALIDATION, TEST)


@dataclass(frozen=True)
class Sizes:
    """Of validation and test: both shares of the whole (0 < share < 1), or both numbers of rows (int)."""

    validation: float | int
    test: float | int

    @property
    def exact(self) -> bool:
        return isinstance(self.validation, int)


def assign(pool: str, openings: Sequence[int], sizes: Sizes) -> array[int]:
    """For each row of the pool, given the 64-bit hash of its opening, one of TRAIN, VALIDATION, TEST and UNUSED."""
    splits = POOLS[pool]
    if sizes.exact and pool != "train":
        return _by_number(splits, openings, sizes)
    if len(splits) == 1:
        return array("B", splits) * len(openings)
    validation, test = sizes.validation, sizes.test
    if TRAIN not in splits:  # the pool is all held out: the two shares say how to divide it
        validation, test = validation / (validation + test), test / (validation + test)
    below = [(test, TEST), (test + validation, VALIDATION)]
    rest = splits[0]
    return array("B", (next((s for limit, s in below if hash_ < limit * 2**64), rest) for hash_ in openings))


def _by_number(splits: tuple[int, ...], openings: Sequence[int], sizes: Sizes) -> array[int]:
    rows = Counter(openings)
    wanted = {TEST: int(sizes.test), VALIDATION: int(sizes.validation)}
    left = {split: number for split, number in wanted.items() if split in splits}
    rest = TRAIN if TRAIN in splits else UNUSED
    place: dict[int, int] = {}
    for opening in sorted(rows):
        # Where not all rows of an opening fit, it goes where they do: it is never divided between splits.
        place[opening] = next((split for split in left if rows[opening] <= left[split]), rest)
        if place[opening] in left:
            left[place[opening]] -= rows[opening]
    room = _fill(rows, place, left, rest)
    assigned = array("B")
    for opening in openings:
        if opening in room:
            room[opening] -= 1
        assigned.append(UNUSED if room.get(opening, 0) < 0 else place[opening])
    return assigned


def _fill(rows: Counter[int], place: dict[int, int], left: dict[int, int], rest: int) -> dict[int, int]:
    """Moves openings that fit nowhere whole into what is left: {opening: number of rows}; its others go unused."""
    room = {}
    spare = (opening for opening in sorted(rows) if place[opening] == rest)
    for split, number in left.items():
        opening = next(spare, None) if number else None
        if opening is not None:
            place[opening], room[opening] = split, number
    return room
