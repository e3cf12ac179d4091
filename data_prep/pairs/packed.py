"""NeMo-Aligner's packed format (model.data.data_impl=packed_jsonl): several pairs in one row of a fixed length.

A file is a NumPy array of dicts, as DPOPackedDataset of NeMo-Aligner 0.7 reads it: `input_ids` and `labels` of all
sequences in a row (chosen, rejected, chosen, ...), `seq_boundaries` (where each begins, and where the last ends), and
`lengths` and `reward` of each. Its collate function drops the last input and the first label of every sequence. So we
store whole sequences in both, with labels -100 in the prompt: after collating they equal what DPOModelDataset gives for
the unpacked rows. (NVIDIA's own packing script also shifts the labels, so they are shifted twice.)
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.pairs.pair_tokens import PairTokenizer
from launcher.findings import Finding, Refused
from launcher.whole_file import sha256

OPEN = 128  # packs begun and not yet full
_BATCH = 256
_NO_LABEL = -100
_SIDES = ("chosen", "rejected")


def name(split: str) -> str:
    """The file name for a split."""
    return f"{split}_packed.npy"


def write(
    pairs: Path, target: Path, tokenizer: PairTokenizer, size: int, at: Callable[[int], None]
) -> tuple[dict[str, object], dict[str, object]]:
    """Packs a file of pairs into rows of up to `size` tokens, in constant memory, nearly in the order of the pairs.

    Calls `at` with the number of pairs packed so far. Returns ({rows, bytes, SHA-256 of the file}, {packs, pairs in
    them, share of `size` that is filled}). Raises Refused if NeMo-Aligner would misread the tokens.
    """
    import numpy as np

    eos = tokenizer.token_id(tokenizer.files.special_tokens.get("eos_token", "</s>"))
    counted = {"packs": 0, "pairs": 0, "tokens": 0}

    def packs() -> Iterator[dict[str, object]]:
        for pack in first_fit(_tokenized(pairs, tokenizer, eos), size):
            counted["packs"] += 1
            counted["pairs"] += len(pack) // 2
            at(counted["pairs"])
            counted["tokens"] += sum(len(ids) - 1 for ids, _, _ in pack)
            yield _row(pack)

    with target.open("wb") as file:
        _header(file, np, 0)
        pickler = pickle.Pickler(file, protocol=4)
        pickler.fast = True  # do not keep what was written: each pack is freed
        pickler.dump(_Array(packs()))
        file.seek(0)
        _header(file, np, counted["packs"])
    facts = {"rows": counted["packs"], "bytes": target.stat().st_size, "sha256": sha256(target)}
    filled = round(counted["tokens"] / (counted["packs"] * size), 3)
    return facts, {"packs": counted["packs"], "pairs": counted["pairs"], "filled": filled}


#: (token ids, number of them in the prompt, reward)
_Side = tuple[list[int], int, float]


def first_fit(pairs: Iterator[tuple[_Side, _Side]], size: int) -> Iterator[list[_Side]]:
    """Put each pair into the first open pack that has room; when too many packs are open, close the fullest."""
    packs: list[tuple[int, list[_Side]]] = []  # (tokens of room left, sides)
    for pair in pairs:
        needed = sum(len(ids) - 1 for ids, _, _ in pair)
        assert needed <= size, "a pair longer than a pack"
        at = next((number for number, (room, _) in enumerate(packs) if room >= needed), None)
        if at is None:
            if len(packs) == OPEN:
                yield packs.pop(min(range(OPEN), key=lambda number: packs[number][0]))[1]
            packs.append((size - needed, list(pair)))
        else:
            room, sides = packs[at]
            packs[at] = (room - needed, [*sides, *pair])
    yield from (sides for _, sides in packs)


def _tokenized(path: Path, tokenizer: PairTokenizer, eos: int | None) -> Iterator[tuple[_Side, _Side]]:
    with path.open("rb") as lines:
        while batch := [json.loads(line) for line in islice(lines, _BATCH)]:
            texts = [
                text
                for row in batch
                for text in (row["prompt"], *(row["prompt"] + row[f"{side}_response"] for side in _SIDES))
            ]
            ids = tokenizer.encode(texts)
            for number, row in enumerate(batch):
                prompt, chosen, rejected = ids[3 * number : 3 * number + 3]
                for side in (chosen, rejected):
                    if eos in side[1:-2] or (side[0] == eos and eos in side[1:-1]):
                        raise _misread(tokenizer)
                yield (
                    (chosen, len(prompt), row["chosen_reward"]),
                    (rejected, len(prompt), row["rejected_reward"]),
                )


def _misread(tokenizer: PairTokenizer) -> Refused:
    token = tokenizer.files.special_tokens.get("eos_token", "</s>")
    why = f"conversations contain {token}, the tokenizer's end token: NeMo-Aligner would take what follows for padding"
    return Refused([Finding("--pack", "", why, "use another --prompt-format or tokenizer, or do not pack")])


def _row(pack: list[_Side]) -> dict[str, object]:
    import numpy as np

    ends = np.cumsum([len(ids) for ids, _, _ in pack]).tolist()
    labels = [[_NO_LABEL] * prompt + ids[prompt:] for ids, prompt, _ in pack]
    return {
        "input_ids": np.concatenate([np.array(ids, np.int32) for ids, _, _ in pack]),
        "labels": np.concatenate([np.array(side, np.int32) for side in labels]),
        "reward": [reward for _, _, reward in pack],
        "lengths": [len(ids) - 1 for ids, _, _ in pack],
        "seq_boundaries": [0, *ends],
    }


def _header(file: BinaryIO, np: Any, rows: int) -> None:
    """Write the array's header. NumPy pads headers, so a header for more rows has the same size."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (rows,)})


class _Array:
    """Pickles as a NumPy array of the iterator's rows, one row at a time."""

    def __init__(self, rows: Iterator[object]) -> None:
        self._rows = _List(rows)

    def __reduce__(self) -> tuple[object, ...]:
        import numpy as np

        return np.array, (self._rows,)


class _List:
    """Pickles as a list of the iterator's items."""

    def __init__(self, rows: Iterator[object]) -> None:
        self._rows = rows

    def __reduce__(self) -> tuple[object, ...]:
        return list, (), None, self._rows
