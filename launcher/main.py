"""The Hydra app: checks a sweep, then submits it to Slurm or runs it here.

    python launcher/main.py -m model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5

Exit codes: 0 all trials done (or submitted), 1 a trial failed, 2 refused before anything was started, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a script: the package is one folder above

from launcher.compose.hydra_app import main

if __name__ == "__main__":
    sys.exit(main())
