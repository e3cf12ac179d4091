"""What prepare_data.py does, written straightforwardly with the datasets library: the other side of the benchmark.

    python -m tests.benchmarks.datasets_map PAIRS.jsonl TOKENIZER-FOLDER OUT MAX-TOKENS --batched|--row-by-row

One map that forms a pair of each row, checks its texts and counts its tokens with the tokenizer as transformers loads
it; filters for what was found wrong, for duplicates and for the three splits; to_json. The rules are prepare_data.py's
own functions, so that the same rows come out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data_prep.pairs import hh_format, splits
from data_prep.pairs.conversation import Conversation, Pair

SIZES = splits.Sizes(0.05, 0.05)
_NOTHING = {"prompt": "", "chosen_response": "", "rejected_response": "", "chosen_reward": 0.0, "rejected_reward": 0.0}
ROW = list(_NOTHING)


def main(source: str, tokenizer_folder: str, out: str, max_tokens: str, how: str) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    longest = int(max_tokens)

    def made(pair: Pair, ids: list[list[int]]) -> dict[str, Any]:
        prompt, *sides = ids
        length = max(map(len, sides))
        sound = all(side[: len(prompt)] == prompt and len(side) > len(prompt) for side in sides) and length <= longest
        place = splits.place("all", pair.opening_hash(), SIZES)
        return {**pair.row(), "length": length, "split": place if sound else -1, "hash": str(pair.row_hash())}

    def one(row: dict[str, Any]) -> dict[str, Any]:
        pair = pair_of(row)
        if pair is None:
            return {**_NOTHING, "length": 0, "split": -1, "hash": ""}
        return made(pair, tokenizer(texts_of(pair), add_special_tokens=False)["input_ids"])

    def many(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = [pair_of(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
        good = [pair for pair in pairs if pair is not None]
        ids = tokenizer([text for pair in good for text in texts_of(pair)], add_special_tokens=False)["input_ids"]
        done = [made(pair, ids[3 * number : 3 * number + 3]) for number, pair in enumerate(good)]
        return {key: [row[key] for row in done] for key in [*ROW, "length", "split", "hash"]}

    rows = load_dataset("json", data_files=source, split="train")
    batched = how == "--batched"
    rows = rows.map(many if batched else one, batched=batched, remove_columns=rows.column_names)
    seen: set[str] = set()

    def kept(row: dict[str, Any]) -> bool:
        new = row["split"] >= 0 and row["hash"] not in seen
        seen.add(row["hash"])
        return new

    rows = rows.filter(kept)
    for place, name in enumerate(splits.NAMES):
        split = rows.filter(lambda number, place=place: number == place, input_columns="split")
        split.select_columns(ROW).to_json(Path(out) / f"{name}.jsonl")


def pair_of(row: dict[str, Any]) -> Pair | None:
    conversation = hh_format.read_texts(row["chosen"], row["rejected"])
    pair = hh_format.render(conversation) if isinstance(conversation, Conversation) else None
    return pair if isinstance(pair, Pair) else None


def texts_of(pair: Pair) -> list[str]:
    return [pair.prompt, pair.prompt + pair.chosen_response, pair.prompt + pair.rejected_response]


if __name__ == "__main__":
    main(*sys.argv[1:])
