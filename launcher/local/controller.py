"""The process between the launcher and a trial's ranks: submitit's controller, adapted to ranks that need each other.

    python -m launcher.local.controller <trial>/log

Unlike submitit's, it ends with the launcher, ends all ranks when one has failed (the others would wait for it in a
collective for ever), has no time limit, runs a trial only if no other launcher does, and records how the ranks ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.local.local import Controller

from launcher import whole_file
from launcher.local.end_with_parent import PARENT, die_with_parent
from launcher.sweep import result_file

JOB_ID = "SUBMITIT_LOCAL_JOB_ID"
GRACE = "LAUNCHER_GRACE_S"
#: Exit code: another launcher runs the trial.
BUSY = 75  # EX_TEMPFAIL of sysexits.h
_POLL_S = 0.05
# Long enough for the other ranks to record their errors, too short to be a nuisance.
_LAST_WORDS_S = 1.0


class TrialController(Controller):
    """Starts the ranks, waits for them, records their exit codes in <job id>_exit.json."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pid = os.environ[JOB_ID]  # submitit names files by it; the system reuses process ids
        self.grace_s = float(os.environ[GRACE])

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        """Wait until all ranks have ended; if one fails, end the others: TERM, then KILL."""
        seen: dict[int, float] = {}
        ended_by_us: set[int] = set()
        pending = [(_LAST_WORDS_S, signal.SIGTERM), (_LAST_WORDS_S + self.grace_s, signal.SIGKILL)]
        failed_at = None
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.time()
            for rank, code in enumerate(codes):
                if code is not None:
                    seen.setdefault(rank, now)
            if all(code is not None for code in codes):
                self._note(codes, seen, ended_by_us)
                first = min(seen, key=lambda rank: (not codes[rank], seen[rank]))
                if codes[first] not in (0, -signal.SIGTERM):  # TERM: the launcher, or somebody, stops the trial
                    why = f"rank {first} ended with exit code {codes[first]}"
                    result_file.finish_without_evaluation(self.folder.parent, why)
                return codes
            if failed_at is None and any(codes):
                failed_at = now
            while failed_at is not None and pending and now >= failed_at + pending[0][0]:
                ended_by_us.update(rank for rank, code in enumerate(codes) if code is None)
                self._forward_signal(pending.pop(0)[1])
            time.sleep(_POLL_S)

    def _note(self, codes: Sequence[int | None], seen: dict[int, float], ended_by_us: set[int]) -> None:
        ranks = [
            {"rank": rank, "code": code, "time": seen[rank], "ended_by_launcher": rank in ended_by_us}
            for rank, code in enumerate(codes)
        ]
        whole_file.write_json(self.folder / f"{self.pid}_exit.json", ranks)


def main() -> int:
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())  # for the ranks
    folder = Path(sys.argv[1])
    try:
        with whole_file.locked(folder / "lock", wait=False):
            TrialController(folder).run(max_retry=1)
    except BlockingIOError:
        print("another launcher runs this trial", file=sys.stderr)
        return BUSY
    return 0


if __name__ == "__main__":
    sys.exit(main())
