"""A fault inside a rank, on demand: Python imports this file at its start where its folder is on PYTHONPATH.

A rank watches its trial's folder for a file `sabotage_RANK`, whose text says what happens to it, takes the file away,
and does it: `segfault` reads address 0, `memory` takes 6 GB and keeps them.
"""

import ctypes
import os
import sys
import threading
import time


def _watch(order: str) -> None:
    while True:
        try:
            with open(order) as file:
                what = file.read()
            os.unlink(order)
        except FileNotFoundError:
            time.sleep(0.05)
            continue
        print(f"sabotage: {what}", file=sys.stderr, flush=True)
        if what == "segfault":
            ctypes.string_at(0)
        if what == "memory":
            held = [b"x" * 100_000_000 for _ in range(60)]
            time.sleep(600)
            print(len(held))


if "launcher.train.slurm_rank" in sys.orig_argv and "SLURM_PROCID" in os.environ:
    name = os.path.join(sys.orig_argv[-1], f"sabotage_{os.environ['SLURM_PROCID']}")
    threading.Thread(target=_watch, args=(name,), daemon=True).start()
