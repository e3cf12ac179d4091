"""The table that prepare_data.py prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.pairs import packed, splits

_COLUMNS = ("mean", "median", "p99", "max")


def counts(record: Mapping[str, Any]) -> str:
    """ "288 train, 32 validation, 40 test" """
    return ", ".join(f"{record['rows'][name]:,} {name}" for name in splits.NAMES)


def table(folder: Path, record: Mapping[str, Any], tokenizer: Path | None) -> str:
    """The rows read and written, the lengths in each split, and the dropped rows by reason."""
    lengths = record["lengths"]
    lines = [f"{folder}: {counts(record)}, from {record['source']['name']}"]
    if note := record["source"].get("note"):
        lines.append(f"  {note}")
    lines += ["", f"  {'':<43}{'rows':>9}   {lengths['unit']}: " + "".join(f"{name:>8}" for name in _COLUMNS)]
    lines.append(_line("read", record["rows_read"]))
    for name in splits.NAMES:
        shown = "".join(f"{lengths[name].get(column, ''):>8}" for column in _COLUMNS)
        lines.append(_line(name, record["rows"][name]) + " " * (len(lengths["unit"]) + 5) + shown)
    lines.append(_line("dropped", sum(record["dropped"].values())))
    lines += [_line(f"  {reason}", rows) for reason, rows in record["dropped"].items()]
    if several := record.get("several_rejected"):
        which = record["options"]["rejected"]
        lines.append(_line(f"with several rejected (--rejected {which})", several["rows"]))
        if several["further_pairs"]:
            lines.append(_line("  further pairs of these", several["further_pairs"]))
    if record["repaired"]:
        lines.append(_line("kept with a remark", sum(record["repaired"].values())))
        lines += [_line(f"  {repair}", rows) for repair, rows in record["repaired"].items()]
    rewarded = sum(record["rewarded_rows"].values())
    if rewarded:
        lines.append(_line("with rewards of the source", rewarded))
    lines += ["", f"  lengths are of {lengths['of']}; " + _border(tokenizer)]
    if "packed" in record:
        lines += _packed(folder, record["packed"])
    return "\n".join(lines)


def _packed(folder: Path, made: Mapping[str, Any]) -> list[str]:
    """How full the packs are, and the config keys that a trial needs to read them."""
    full = ", ".join(f"{made[name]['packs']:,} {name} ({made[name]['filled']:.0%} full)" for name in splits.NAMES)
    prefix = ",".join(f"{name}:[{folder / packed.name(name)}]" for name in splits.NAMES)
    return [
        f"  packs of {made['size']} tokens: {full}; to train on them, with Transformer Engine:",
        f"  model.data.data_impl=packed_jsonl model.encoder_seq_length={made['size']}"
        f" model.micro_batch_size=1 'model.data.data_prefix={{{prefix}}}'",
    ]


def _line(name: str, rows: int) -> str:
    return f"  {name:<43}{rows:>9,}"


def _border(tokenizer: Path | None) -> str:
    if tokenizer:
        return f"no token of {tokenizer.name} crosses from prompt to response"
    return "lengths in tokens and the token border were not checked (give --tokenizer)"
