"""Checks that the pairs have the rewards from which an RPO loss computes its target."""

from __future__ import annotations

import functools
import json
from itertools import islice
from pathlib import Path

from launcher.findings import Finding
from launcher.nemo import data_files
from launcher.trial_config.config import TrialConfig

LOOK_AT = 1000  # rows to read of a file that no dataset.json describes
_DEFAULTS = (1.0, 0.0)  # NeMo-Aligner's own, which prepare_data.py writes for sets without rewards


def warnings(config: TrialConfig) -> list[Finding]:
    """A warning about training pairs without rewards, if the loss is an RPO loss.

    An RPO loss regresses the difference of log-ratios to the difference of rewards. If every row has the same two
    rewards, the target says nothing about how strong a preference is.
    """
    loss = config.model.dpo.preference_loss
    if not loss.startswith("rpo") or config.packed:
        return []
    path = config.data_files["train"]
    rewarded, rows = _rewarded(path)
    if rewarded == rows:
        return []
    how_many = "no row has" if not rewarded else f"only {rewarded} of {rows} rows have"
    why = f"{loss} learns from rewards, and {how_many} any but the defaults 1 and 0"
    remedy = "prepare a set with chosen_reward and rejected_reward, or use model.dpo.preference_loss=dpo"
    return [Finding(str(path), "", why, remedy)]


def _rewarded(path: Path) -> tuple[int, int]:
    """(rows with rewards, rows): over all rows if dataset.json describes the file, else over the first LOOK_AT."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # other checks report a file that is not there
    return _count(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=64)
def _count(path: Path, mtime: int, size: int) -> tuple[int, int]:
    known = data_files.record(path)
    if known is not None and known.rewarded_rows is not None and known.rows is not None:
        return known.rewarded_rows, known.rows
    rewards = []
    try:
        with path.open("rb") as lines:
            for row in map(json.loads, islice(lines, LOOK_AT)):
                rewards.append((row.get("chosen_reward"), row.get("rejected_reward")))
    except (OSError, ValueError, AttributeError):
        return 0, 0  # other checks report what is wrong with it
    given = [pair for pair in rewards if None not in pair]
    return (0 if set(given) <= {_DEFAULTS} else len(given)), len(rewards)
