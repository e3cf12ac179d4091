"""What the forkserver of conftest.py imports once, so that each trial of the tests starts with NeMo imported."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a fork cannot take a pool of threads along

from launcher.train.nemo_aligner import log_filter, standins

log_filter.quiet()
standins.install()

with standins.importing():
    from launcher.train.nemo_aligner import session  # noqa: F401
