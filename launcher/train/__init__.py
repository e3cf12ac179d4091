"""What runs in the job: one rank of one trial. Importing this package imports neither torch nor NeMo."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def run_trial(trial_dir: Path | str, signals: Iterable[int] = ()) -> dict[str, object]:
    """Train one rank of the trial whose config.yaml lies in `trial_dir`, in this process; see launcher.train.run.

    Each of `signals` is treated as a warning (launcher.train.signals): all ranks save after the current step and return
    {"stopped": why, "step": n}. If `signals` is empty, signal handlers are left as they are.
    """
    from launcher.train import signals as warning

    if signals:
        warning.listen(Path(trial_dir), signals)
    from launcher.train.run import run_trial as run

    return run(Path(trial_dir))
