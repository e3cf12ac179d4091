"""Stands in for one rank of a trial where the training itself is not what a test is about. Standard library only.

python standin.py -u -m launcher.train.slurm_rank TRIAL

STANDIN_SECONDS  how long it takes (default 0)
STANDIN_FAILS    the beta whose rank 0 exits with code 3
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    began = time.time()
    trial = Path(sys.argv[-1])
    rank = int(os.environ["SLURM_PROCID"])
    found = re.search(r"ref_policy_kl_penalty: (\S+)", (trial / "config.yaml").read_text(encoding="utf-8"))
    assert found, "no beta in the config"
    beta = float(found[1])
    print(f"rank {rank} of beta {beta}", flush=True)
    if rank == 0 and os.environ.get("STANDIN_FAILS") == found[1]:
        print("failing as told", file=sys.stderr, flush=True)
        return 3
    time.sleep(float(os.environ.get("STANDIN_SECONDS", "0")))
    tokens = {name: os.environ.get(name, "") for name in ("HF_TOKEN", "WANDB_API_KEY")}
    seen = {
        "arguments": sys.argv[1:],
        "host": socket.gethostname(),
        "ranks": int(os.environ["SLURM_NTASKS"]),
        "began": began,
        "ended": time.time(),
        "pythonpath": os.environ.get("PYTHONPATH", ""),
        "mine": os.environ.get("MINE", ""),
        "folder": os.getcwd(),
        "secrets": {name: hashlib.sha256(value.encode()).hexdigest() for name, value in tokens.items()},
    }
    (trial / f"rank{rank}.json").write_text(json.dumps(seen))
    if rank == 0:
        result = {"beta": beta, "seconds": 1.0, "final": {"val/loss": (beta - 0.3) ** 2}}
        (trial / "result.new").write_text(json.dumps(result))
        os.replace(trial / "result.new", trial / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
