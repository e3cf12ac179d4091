"""Decides which rows are for training, validation and test.

By hash (sizes are shares): a row's split depends on its opening, the human's first message. So neither a prompt nor two
stages of one conversation are ever in two splits, and rows added later move no others. By number (sizes are row
counts): openings are assigned in the order of their hashes until the counts are reached, so sizes fit a global batch;
rows added later may move others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, 3
NAMES = ("train", "validation", "test")

#: The pools of a source and the splits each may fill: "held_out" is divided into validation and test, "all" into three.
POOLS = {"all": (TRAIN, VALIDATION, TEST), "train": (TRAIN,), "validation": (VALIDATION,), "test": (TEST,)}
POOLS["held_out"] = (VALIDATION, TEST)


@dataclass(frozen=True)
class Sizes:
    """Sizes of validation and test: both are shares of all rows (0 < share < 1), or both numbers of rows (int)."""

    validation: float | int
    test: float | int

    @property
    def exact(self) -> bool:
        return isinstance(self.validation, int)


class Openings(Protocol):
    """The 64-bit hashes of the rows' openings, in row order; can be iterated any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...


def by_number(pool: str, sizes: Sizes) -> bool:
    """Whether all rows of the pool have to be known before the first can be placed."""
    return sizes.exact and pool != "train"


def place(pool: str, opening: int, sizes: Sizes) -> int:
    """The split of one row, given the hash of its opening; not for pools that are divided by number."""
    splits = POOLS[pool]
    if len(splits) == 1:
        return splits[0]
    validation, test = sizes.validation, sizes.test
    if TRAIN not in splits:  # the whole pool is held out: divide it by the ratio of the two shares
        validation, test = validation / (validation + test), test / (validation + test)
    if opening < test * 2**64:
        return TEST
    return VALIDATION if opening < (test + validation) * 2**64 else splits[0]


def deal(pool: str, openings: Openings, sizes: Sizes) -> Iterator[int]:
    """Yields TRAIN, VALIDATION, TEST or UNUSED for each row of the pool, so that the requested numbers are met.

    Only the openings with the smallest hashes are in memory: as many as are needed to reach the numbers.
    """
    splits = POOLS[pool]
    wanted = {TEST: int(sizes.test), VALIDATION: int(sizes.validation)}
    wanted = {split: number for split, number in wanted.items() if split in splits}
    rest = TRAIN if TRAIN in splits else UNUSED
    share = min(1.0, 4 * (sum(wanted.values()) + 64) / max(len(openings), 1))
    while True:
        rows = Counter(opening for opening in openings if opening <= share * 2**64)
        left = dict(wanted)
        placed = _whole(rows, left, rest)
        if share >= 1 or not any(left.values()):
            break
        share = min(1.0, 4 * share)
    room = _fill(rows, placed, left, rest)
    for opening in openings:
        if opening in room:
            room[opening] -= 1
        yield UNUSED if room.get(opening, 0) < 0 else placed.get(opening, rest)


def _whole(rows: Counter[int], left: dict[int, int], rest: int) -> dict[int, int]:
    """Assigns each opening to a split in which all its rows fit, and reduces `left`. No opening is divided."""
    placed: dict[int, int] = {}
    for opening in sorted(rows):
        placed[opening] = next((split for split in left if rows[opening] <= left[split]), rest)
        if placed[opening] in left:
            left[placed[opening]] -= rows[opening]
    return placed


def _fill(rows: Counter[int], placed: dict[int, int], left: dict[int, int], rest: int) -> dict[int, int]:
    """Fills the rest of each split from an opening that does not fit whole; its other rows are unused.

    Returns {opening: number of its rows to use}.
    """
    room = {}
    spare = (opening for opening in sorted(rows) if placed[opening] == rest)
    for split, number in left.items():
        opening = next(spare, None) if number else None
        if opening is not None:
            placed[opening], room[opening] = split, number
    return room
