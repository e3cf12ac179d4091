"""Typed records of a trial: result.json and the validations in metrics.jsonl. The report reads their keys only here.

Odd or damaged values become None or are left out: a report can be made at any moment, also of others' folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Pairs = Mapping[str, Sequence[float]]
"""Columns that the evaluation measured: one value for each held-out pair, in the data's order."""


@dataclass(frozen=True)
class Validation:
    """Means over the held-out pairs as NeMo-Aligner logged them, without their prefix `val/`."""

    step: int
    values: Mapping[str, float]

    def get(self, key: str) -> float | None:
        return self.values.get(key)

    @property
    def pairs(self) -> int | None:
        """The number of pairs it used; None if that was not recorded."""
        pairs = self.values.get("pairs")
        return int(pairs) if pairs else None


@dataclass(frozen=True)
class Sample:
    """Greedy answers to a held-out prompt. `ended`: the model ended the answer before it was cut."""

    prompt: str
    chosen: str
    reference: str
    reference_ended: bool
    policy: str
    policy_ended: bool


@dataclass(frozen=True)
class RecordedEvaluation:
    """What launcher.train.nemo_aligner.evaluate measured after training."""

    pairs: Pairs | None
    """None if no pair was evaluated, or the columns are damaged."""
    samples: tuple[Sample, ...]
    skipped: str
    """Why it was skipped; "" if it was not."""


@dataclass(frozen=True)
class Result:
    """result.json of a trial that is done."""

    steps: int | None
    seconds: float | None
    ranks: int | None
    device: str
    """"gpu, NVIDIA H100"; "" if it is not known."""
    precision: str
    final: Validation | None
    train_pairs: int | None
    trainable: int | None
    parameters: int | None
    versions: Mapping[str, str]
    evaluation: RecordedEvaluation | None


def result(data: Mapping[str, object]) -> Result:
    final, versions, evaluated = data.get("final"), data.get("versions"), data.get("evaluation")
    return Result(
        steps=integer(data.get("steps")),
        seconds=number(data.get("seconds")),
        ranks=integer(data.get("ranks")),
        device=str(data.get("device") or ""),
        precision=str(data.get("precision") or ""),
        final=validation(final) if isinstance(final, dict) else None,
        train_pairs=integer(mapping(data.get("pairs")).get("train")),
        trainable=integer(data.get("trainable_parameters")),
        parameters=integer(data.get("parameters")),
        versions={name: str(version) for name, version in versions.items()} if isinstance(versions, dict) else {},
        evaluation=evaluation(evaluated) if isinstance(evaluated, dict) else None,
    )


def evaluation(data: Mapping[str, object]) -> RecordedEvaluation:
    samples = data.get("samples")
    return RecordedEvaluation(
        pairs=columns(data.get("per_pair")),
        samples=tuple(
            Sample(
                prompt=sample["prompt"],
                chosen=str(sample.get("chosen", "")),
                reference=str(sample.get("reference", "")),
                reference_ended=bool(sample.get("reference_ended")),
                policy=str(sample.get("policy", "")),
                policy_ended=bool(sample.get("policy_ended")),
            )
            for sample in (samples if isinstance(samples, list) else ())
            if isinstance(sample, dict) and isinstance(sample.get("prompt"), str)
        ),
        skipped=str(data.get("skipped") or ""),
    )


def columns(data: object) -> Pairs | None:
    """The columns, or None unless they are non-empty lists of finite numbers, all of one length."""
    if not isinstance(data, dict) or not all(isinstance(values, list) for values in data.values()):
        return None
    lengths = {len(values) for values in data.values()}
    if len(lengths) != 1 or 0 in lengths or not all(map(_finite, data.values())):
        return None
    return {str(name): values for name, values in data.items()}


def _finite(values: list[object]) -> bool:
    """Whether all are numbers with a finite sum, so that each of them is finite too."""
    numbers = [value for value in values if isinstance(value, (int, float))]
    try:
        return len(numbers) == len(values) and math.isfinite(math.fsum(numbers))
    except (OverflowError, ValueError):
        return False


def validation(line: Mapping[str, object]) -> Validation | None:
    """Read a line of metrics.jsonl, or a result's `final`. None if it holds no validation."""
    if not any(key.startswith("val/") for key in line):
        return None
    values = {
        key.removeprefix("val/"): known
        for key, value in line.items()
        if key.startswith("val/") and (known := number(value)) is not None
    }
    return Validation(integer(line.get("step")) or 0, values)


def mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
