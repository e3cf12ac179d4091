"""Whether this start of a trial still owns the trial's folder. Standard library only.

Slurm can lose contact with a node whose processes keep running, and start the trial again on another node. Two starts
must not write to one folder: <trial>/log/current names the start that may write, env TRIAL_ATTEMPT names this one.
"""

from __future__ import annotations

import os
from pathlib import Path

EXIT_CODE = 77


def check(trial_dir: Path) -> None:
    """End this process at once, without saving or writing anything, if another start has taken over."""
    attempt = os.environ.get("TRIAL_ATTEMPT")
    if not attempt:
        return
    try:
        owner = (trial_dir / "log" / "current").read_text().strip()
    except OSError:  # no such file, or its disk is briefly unavailable: assume that no other start took over
        return
    if owner and owner != attempt:
        print(f"start {owner} has taken over; this one leaves", flush=True)
        os._exit(EXIT_CODE)
