"""Whether the pairs have the rewards that an RPO loss takes its target from."""

from __future__ import annotations

import functools
import json
from itertools import islice
from pathlib import Path

from launcher.findings import Finding
from launcher.nemo import data_files
from launcher.trial_config.config import TrialConfig

LOOK_AT = 1000  # rows of a file that nothing describes
_DEFAULTS = (1.0, 0.0)  # NeMo-Aligner's own, which prepare_data.py writes for sets without rewards


def warnings(config: TrialConfig) -> list[Finding]:
    """A warning about training pairs without rewards, where the loss is one of RPO's.

    These regress the difference of log-ratios to that of the rewards; with the same two numbers in every row nothing of
    a preference's strength is left in it.
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
    """(rows with rewards, rows), of all rows where dataset.json describes the file, else of the first ones."""
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
