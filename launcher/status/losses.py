"""The training loss over the steps, as a line of block characters."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher import whole_file

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-:=+*#"


@dataclass
class _History:
    position: int = 0
    losses: dict[int, float] = field(default_factory=dict)


class Losses:
    """The training losses of trials by step. Reads only what was appended since the last call."""

    def __init__(self) -> None:
        self._histories: dict[Path, _History] = {}

    def of(self, folder: Path) -> list[float]:
        """The losses in the order of the steps; steps that a restart repeated replace the earlier ones."""
        path = folder / "metrics.jsonl"
        history = self._histories.setdefault(path, _History())
        try:
            with whole_file.regular(path) as stream:
                stream.seek(history.position)
                new = stream.read()
        except OSError:
            new = b""
        whole, _, _ = new.rpartition(b"\n")  # the rest of a line that is being written is read next time
        history.position += len(whole) + 1 if whole else 0
        for raw in whole.splitlines():
            if b'"train/loss"' not in raw:
                continue
            try:
                line = json.loads(raw)
                loss = line["train/loss"]
                history.losses[int(line["step"])] = math.nan if loss is None else float(loss)
            except (ValueError, KeyError, TypeError, OverflowError):
                continue  # a line that a crash cut in two
        return [history.losses[step] for step in sorted(history.losses)]


def sparkline(values: Sequence[float], width: int, levels: str = BLOCKS) -> str:
    """The values in `width` characters, each the mean of its part of them; `x` if that is not finite."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in zip(edges, edges[1:], strict=False)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

    def level(mean: float) -> str:
        if not math.isfinite(mean):
            return "x"
        return levels[round((mean - low) / span * (len(levels) - 1)) if span else 0]

    return "".join(map(level, means))
