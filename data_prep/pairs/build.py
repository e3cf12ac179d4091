"""Source -> files: filter, split, write, pack. Rows are streamed, so memory does not depend on their number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from data_prep.pairs import jsonl, packed, splits
from data_prep.pairs.conversation import Drop, Pair, Repair
from data_prep.pairs.lengths import Lengths
from data_prep.pairs.pair_filter import LOOK_AT, Options, PairFilter
from data_prep.pairs.pair_tokens import PairTokenizer
from data_prep.pairs.prompt_formats import Llama3, PromptFormat
from data_prep.pairs.sources import Source
from data_prep.pairs.spill_file import SpillFile
from data_prep.progress import Progress
from launcher.findings import Finding, Refused

#: Increase this number when the same source and options must give different files.
RULES = 4

#: What to do if no pairs are left, by the most common reason for dropping rows.
_REMEDIES = {
    Drop.NO_PROMPT: "name the prompt's key with --map prompt=KEY; if both texts begin with the prompt, use"
    " --form implicit",
    Drop.TURN_ORDER: "check that the turns alternate and begin with the user's; --preview shows the first pair",
    Drop.TOOLS: "NeMo-Aligner's DPO does not support tools: use rows without them",
    Drop.ROLE: "rename the roles, or leave such messages out",
    Drop.TIE: "a pair needs a row in which one response is preferred",
    Drop.TOO_LONG: "raise --max-tokens, or add --too-long cut",
    Drop.TOKENS_MERGE: "use another --prompt-format",
    Drop.TEMPLATE: "use --prompt-format llama3 or hh",
}


def recipe(
    source: Source, options: Options, prompt_format: PromptFormat, tokenizer: PairTokenizer | None
) -> dict[str, object]:
    """Everything that determines the files, for dataset.json: equal recipes give equal files, byte for byte."""
    files = tokenizer.files if tokenizer else None
    return {
        "rules": RULES,
        "source": source.facts,
        "options": asdict(options),
        "prompt_format": prompt_format.facts,
        "tokenizer": {"sha256": files.sha256, "kind": files.kind} if files else None,
    }


def preview(
    source: Source, options: Options, prompt_format: PromptFormat, tokenizer: PairTokenizer | None
) -> tuple[str, Pair | None]:
    """Returns (form of most of the first rows, first pair as it will be trained on or None). Raises Refused."""
    with tempfile.TemporaryDirectory() as folder:
        pair_filter = PairFilter(options, prompt_format, tokenizer, Path(folder))
        try:
            for open_pool in source.pools.values():
                first = next(pair_filter.kept(islice(open_pool(lambda share: None), LOOK_AT)), None)
                if first is not None:
                    return pair_filter.rows.recognised.most_common(1)[0][0], first[0]
        finally:
            pair_filter.close()
    return "none", None


def build(
    source: Source,
    options: Options,
    prompt_format: PromptFormat,
    tokenizer: PairTokenizer | None,
    folder: Path,
    progress: Progress,
) -> dict[str, object]:
    """Write the files into `folder` and return their part of dataset.json; `tokenizer` must be loaded.

    Raises Refused for a bad line (unless bad lines are skipped) and if a split would be empty or too small.
    """
    pair_filter = PairFilter(options, prompt_format, tokenizer, folder)
    outputs = [Output(folder / f"{name}.jsonl") for name in splits.NAMES]
    try:
        for pool, open_pool in source.pools.items():
            with progress.phase(f"reading {source.name}" + ("" if pool == "all" else f", {pool.replace('_', ' ')}")):

                def at(share: float) -> None:
                    progress.detail = f"{share:.0%}, {pair_filter.read:,} rows"

                kept = _announced(pair_filter.kept(open_pool(at)), pair_filter, progress)
                _divide(pool, kept, options.sizes, outputs, pair_filter, folder)
    finally:
        files: dict[str, Mapping[str, object]] = {
            f"{name}.jsonl": output.writer.close() for name, output in zip(splits.NAMES, outputs, strict=True)
        }
        pair_filter.close()
    rows = {name: output.writer.rows for name, output in zip(splits.NAMES, outputs, strict=True)}
    _check_rows(rows, options.sizes, pair_filter)
    made: dict[str, object] = {
        "rows_read": pair_filter.read,
        "forms": dict(pair_filter.rows.recognised),
        "rows": rows,
        "rewarded_rows": {name: output.rewarded for name, output in zip(splits.NAMES, outputs, strict=True)},
        "dropped": {reason.value: pair_filter.dropped[reason] for reason in Drop if pair_filter.dropped[reason]},
        "repaired": {repair.value: pair_filter.repaired[repair] for repair in Repair if pair_filter.repaired[repair]},
        "files": files,
        "lengths": {
            "of": "prompt + the longer response",
            "unit": "tokens" if tokenizer else "characters",
            **{name: output.lengths.facts() for name, output in zip(splits.NAMES, outputs, strict=True)},
        },
    }
    if pair_filter.rows.several:
        made["several_rejected"] = {"rows": pair_filter.rows.several, "further_pairs": pair_filter.extra}
    if options.pack and tokenizer:
        packs: dict[str, object] = {"size": options.pack}
        made["packed"] = packs
        for name in splits.NAMES:
            with progress.phase(f"packing {name}"):

                def done(pairs: int, of: int = rows[name]) -> None:
                    progress.detail = f"{pairs / of:.0%}, {pairs:,} pairs"

                target = folder / packed.name(name)
                facts, filled = packed.write(folder / f"{name}.jsonl", target, tokenizer, options.pack, done)
                files[target.name], packs[name] = facts, filled
    return made


def _announced(
    kept: Iterator[tuple[Pair, int]], pair_filter: PairFilter, progress: Progress
) -> Iterator[tuple[Pair, int]]:
    """Yields the same pairs; prints the recognised form at the first pair."""
    first = next(kept, None)
    if first is not None:
        progress.say(f"the rows have the form {pair_filter.rows.recognised.most_common(1)[0][0]}")
        yield first
    yield from kept


class Output:
    """One output file while it is written. `rewarded` counts the pairs whose source row has rewards."""

    def __init__(self, path: Path) -> None:
        self.writer = jsonl.Writer(path)
        self.lengths = Lengths()
        self.rewarded = 0

    def add(self, line: bytes, length: int, rewarded: bool) -> None:
        self.writer.write(line)
        self.lengths.add(length)
        self.rewarded += rewarded


def _divide(
    pool: str,
    kept: Iterator[tuple[Pair, int]],
    sizes: splits.Sizes,
    outputs: list[Output],
    pair_filter: PairFilter,
    folder: Path,
) -> None:
    """Write each pair to the file of its split, in the order of the source."""
    if not splits.by_number(pool, sizes):
        for pair, length in kept:
            output = outputs[splits.place(pool, pair.opening_hash(), sizes)]
            output.add(jsonl.encode(pair.row()), length, pair.rewards is not None)
        return
    with SpillFile(folder) as spilled:
        for pair, length in kept:
            spilled.put(pair, length)
        for place, row in zip(splits.deal(pool, spilled, sizes), spilled.rows(), strict=True):
            if place == splits.UNUSED:
                pair_filter.dropped[Drop.NOT_ASKED_FOR] += 1
            else:
                outputs[place].add(*row)


def check_tokens(prompt_format: PromptFormat, tokenizer: PairTokenizer) -> None:
    """Raises Refused if the (loaded) tokenizer lacks a token that the format writes."""
    if not isinstance(prompt_format, Llama3):
        return
    missing = [token for token in prompt_format.TOKENS if tokenizer.token_id(token) is None]
    if missing:
        why = f"has no token {missing[0]}, which --prompt-format llama3 uses"
        remedy = "give the tokenizer of a Llama 3 model, or use --prompt-format chat or hh"
        raise Refused([Finding("--tokenizer", str(tokenizer.files.path), why, remedy)])


def _check_rows(rows: dict[str, int], sizes: splits.Sizes, pair_filter: PairFilter) -> None:
    total = sum(rows.values())
    if not total:
        drops = pair_filter.dropped.most_common()
        reasons = ", ".join(f"{count} {reason.value}" for reason, count in drops) or "it is empty"
        remedy = _REMEDIES.get(drops[0][0], "check the file") if drops else "check the file"
        raise Refused([Finding("SOURCE", "", f"no pairs left of {pair_filter.read} rows read ({reasons})", remedy)])
    short = []
    for name in splits.NAMES:
        size = getattr(sizes, name, 1)
        needed = size if isinstance(size, int) else 1
        if rows[name] < needed:
            why = f"gets {rows[name]} of {total} pairs, but {needed} are needed"
            remedy = "give more pairs, or other --validation and --test (a share or a number of rows)"
            short.append(Finding(f"{name}.jsonl", "", why, remedy))
    if short:
        raise Refused(short)
