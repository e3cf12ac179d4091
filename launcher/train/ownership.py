"""Whether this start of a trial still owns the trial's folder. Standard library only.

Slurm can lose a node whose processes live on. It then starts the trial elsewhere, and two starts must not write to one
folder: <trial>/log/current names the one that may, as env TRIAL_ATTEMPT names this one.
"""

from __future__ import annotations

import os
from pathlib import Path

EXIT_CODE = 77


def check(trial_dir: Path) -> None:
    """End this process at once, with nothing saved or noted, where another start has taken over."""
    attempt = os.environ.get("TRIAL_ATTEMPT")
    if not attempt:
        return
    try:
        owner = (trial_dir / "log" / "current").read_text().strip()
    except OSError:  # not there, or its disk is away for a moment: nobody is known to have taken over
        return
    if owner and owner != attempt:
        print(f"start {owner} has taken over; this one leaves", flush=True)
        os._exit(EXIT_CODE)
