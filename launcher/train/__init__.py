"""What runs in the job: one rank of one trial. Importing this package imports neither torch nor NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run_trial(trial_dir: Path | str) -> dict[str, Any]:
    """Train one rank of the trial whose config.yaml lies in `trial_dir`, in this process; see launcher.train.dpo."""
    from launcher.train.dpo import run_trial as run  # imports torch and NeMo, some 15 s

    return run(Path(trial_dir))
