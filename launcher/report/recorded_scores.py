"""What `evaluate` measured of a trial's answers: evaluation/scores.json, typed. The only reader of its keys.

Damaged values are left out, as in `recorded`: a report is made at any moment, also of folders that others wrote.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.report import recorded
from launcher.report.measure import Measure
from launcher.report.recorded import Pairs

FILE = "evaluation/scores.json"
PROMPT = "prompt"
"""The column that names each value's prompt, by a number that is equal for equal prompts."""
TRANSFORMERS = "transformers"
"""The engine of answers that name none. Its version stands beside it."""
_OWN = ("base", "beta", "seconds", "tokens")
"""What `made` says of one trial, and not of how it was evaluated."""


@dataclass(frozen=True)
class RecordedJudge:
    """Who compared the answers, against one opponent."""

    opponent: str
    """`reference` or `chosen`."""
    name: str
    facts: Mapping[str, Any]
    unusable: str
    """Why there is no win rate; "" if there is one."""


@dataclass(frozen=True)
class RecordedScores:
    """The scores of one trial."""

    prompts: Sequence[int]
    per_prompt: Mapping[str, Sequence[float | None]]
    """Columns with one value for each of `prompts`; None where a measure does not apply to a prompt."""
    per_pair: Pairs | None
    """Columns of the teacher-forced pass: one value for each held-out pair that it took."""
    judges: tuple[RecordedJudge, ...]
    checks: Mapping[str, Sequence[tuple[str, bool]]]
    """By prompt: (id of each instruction, whether the greedy answer follows it)."""
    made: Mapping[str, Any]
    """How the answers were made and judged; scores are comparable where it is equal."""

    def columns_for(self, measure: Measure) -> Pairs | None:
        """The columns that a measure of the evaluation's answers, or of its held-out pairs, is computed from."""
        return self.columns(measure.columns) if measure.table == "prompts" else self.per_pair

    def columns(self, names: Sequence[str]) -> Pairs | None:
        """Some columns of `per_prompt`, with PROMPT beside, for the prompts that have them all; None if none has."""
        if any(name not in self.per_prompt for name in names):
            return None
        rows = [
            (prompt, values)
            for prompt, *values in zip(self.prompts, *(self.per_prompt[name] for name in names), strict=True)
            if all(value is not None for value in values)
        ]
        if not rows:
            return None
        found = {name: [values[place] for _, values in rows] for place, name in enumerate(names)}
        return {PROMPT: [prompt for prompt, _ in rows], **found}


def scores(data: Mapping[str, object]) -> RecordedScores | None:
    """None if the data name no prompts."""
    ids = data.get("prompt_ids")
    if not isinstance(ids, list) or not ids:
        return None
    columns = {
        str(name): values
        for name, values in recorded.mapping(data.get("per_prompt")).items()
        if isinstance(values, list) and len(values) == len(ids) and all(it is None or _finite(it) for it in values)
    }
    judges = tuple(
        RecordedJudge(
            str(opponent), str(it.get("name") or ""), recorded.mapping(it.get("facts")), str(it.get("unusable") or "")
        )
        for opponent, it in recorded.mapping(data.get("judges")).items()
        if isinstance(it, dict)
    )
    prompts = [zlib.crc32(str(name).encode()) for name in ids]
    checks = {str(key): _checks(found) for key, found in recorded.mapping(data.get("checks")).items()}
    made = {key: it for key, it in recorded.mapping(data.get("made")).items() if key not in _OWN}
    made.setdefault("engine", TRANSFORMERS)
    return RecordedScores(prompts, columns, recorded.columns(data.get("per_pair")), judges, checks, made)


def _checks(data: Any) -> tuple[tuple[str, bool], ...]:
    rows = data if isinstance(data, list) else []
    return tuple((str(row[0]), bool(row[1])) for row in rows if isinstance(row, list) and len(row) == 2)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
