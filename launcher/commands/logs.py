"""examples:
python -m launcher logs 1                 trial 1 of the last sweep: what rank 0 printed, all restarts in order;
                                          if it failed, only why: the first failed rank's error
python -m launcher logs 1 --all           the whole log of that rank all the same
python -m launcher logs 1 --rank 3 -f     rank 3, and on as it prints; ends when the trial does
python -m launcher logs 1 --batch 4711    what its batch script, srun and Slurm said; sweep of array 4711
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.findings import Finding, Refused
from launcher.status import states
from launcher.status.trial_state import ENDED_BADLY, TrialState
from launcher.sweep import find
from launcher.sweep import starts as history
from launcher.sweep.elements import elements
from launcher.sweep.folder import Sweep
from launcher.sweep.logs import StartLogs, by_start, failure, srun_log, tail
from launcher.sweep.trial import Trial

_POLL_S = 0.5
_ASK_S = 30.0  # between two questions to Slurm while following
_LAST_LINES = 20
_CHUNK = 1 << 16


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", metavar="TRIAL", help="its number; or an element of an array, 4711_2")
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="folder, array id, name or `last`")
    parser.add_argument("--rank", type=int, metavar="R", help="default: the one that failed first, else 0")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it prints")
    parser.add_argument("--all", action="store_true", help="the whole log, of a failed trial too")
    parser.add_argument("--batch", action="store_true", help="what the batch script printed, not a rank")


def run(args: argparse.Namespace) -> int:
    sweep, chosen = find.trials_and_sweep([args.trial], args.sweep)
    if len(chosen) != 1:
        raise Refused([Finding("TRIAL", args.trial, "is not one trial", "name one by its number, such as 0")])
    (trial,) = chosen
    if args.batch:
        return _batch(sweep, trial)
    starts = by_start(trial.folder)
    if args.rank is not None and starts and not any(args.rank in start.logs for start in starts):
        ranks = sorted({rank for start in starts for rank in start.logs})
        raise Refused([Finding("--rank", str(args.rank), "has no log", f"there are: {_few(ranks)}")])
    if args.follow:
        return _follow(sweep, trial, args.rank or 0)
    # What has a result needs no question to Slurm; nor does a rank that is asked for by its number.
    if args.rank is None and trial.result() is None:
        state = states.look(sweep).trials[_place(sweep, trial)]
        if state.state in ENDED_BADLY and not args.all:
            return _why(sweep, state, starts)
        if not starts:
            print(f"trial {trial.name} has printed nothing: {state.state.lower()}: {state.remark}", file=sys.stderr)
            return 0
        found = failure(starts[-1], states.batch_log(sweep, state)) if state.state in ENDED_BADLY else None
        args.rank = found.rank if found and found.rank is not None else 0
    for start in starts:
        _whole(start, args.rank or 0)
    return 0


def _place(sweep: Sweep, trial: Trial) -> int:
    return [each.number for each in sweep.trials].index(trial.number)


def _why(sweep: Sweep, state: TrialState, starts: list[StartLogs]) -> int:
    """What matters of a failed trial: how each start ended, and the first failed rank's error in full."""
    code = f", exit code {state.exit_code}" if state.exit_code else ""
    word = f" ({state.slurm}{code})" if state.slurm else code
    print(f"trial {state.trial.name} {state.state.lower()}{word}: {state.remark}")
    batch = states.batch_log(sweep, state)
    said = {start.name: start.why for start in state.starts}
    for place, start in enumerate(starts, 1):
        found = failure(start, batch if start is starts[-1] else ())
        if place < len(starts):
            error = said.get(start.name) or (found.error if found else "ended without an error")
            print(f"start {place} of {len(starts)}, job {start.name}: {error}")
            continue
        rank = found.rank if found and found.rank is not None else min(start.logs)
        which = f"start {place} of {len(starts)}, job {start.name}, rank {rank} of {len(start.logs)}"
        print(f"{which}: {start.logs[rank]}\n")
        for line in found.lines if found else tail(start.logs[rank])[-_LAST_LINES:]:
            print(f"  {line}")
    if batch and (not starts or "memory" in state.reason):
        print("\nthe batch script:")
        for line in batch[-_LAST_LINES:]:
            print(f"  {line}")
    if starts:
        print(f"\nthe whole log: python -m launcher logs {state.trial.number} {sweep.folder} --all")
    return 0


def _batch(sweep: Sweep, trial: Trial) -> int:
    parts = elements(sweep.submitted()).get(trial.number, [])
    printed = [sweep.folder / "slurm" / f"{part.name}.out" for part in parts]
    printed += [srun_log(trial.folder, start.name) for start in history.read(trial.folder)]
    there = [path for path in printed if path.exists()]
    for path in there:
        print(f"==> {path} <==")
        _copy(path)
    if not there:
        print(f"trial {trial.name}: no batch script of its has printed anything", file=sys.stderr)
    return 0


def _whole(start: StartLogs, rank: int) -> None:
    log = start.logs.get(rank)
    if log is not None:
        print(_head(start, rank), flush=True)
        _copy(log)


def _head(start: StartLogs, rank: int) -> str:
    why = next((one.why for one in history.read(start.folder.parent) if one.name == start.name), "")
    return f"==> job {start.name}, rank {rank}: {start.logs[rank]}{f' (ended: {why})' if why else ''} <=="


def _copy(path: Path, position: int = 0) -> int:
    """Print a file from `position` on, byte by byte as it is; returns where it ended."""
    sys.stdout.flush()
    with path.open("rb") as stream:
        stream.seek(position)
        while block := stream.read(_CHUNK):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return stream.tell()


def _follow(sweep: Sweep, trial: Trial, rank: int) -> int:
    """Print what comes, start after start, until the trial has ended or Ctrl-C."""
    try:
        for line in _followed(sweep, trial, rank):
            print(line, flush=True)
    except KeyboardInterrupt:
        return 0
    return 0


def _followed(sweep: Sweep, trial: Trial, rank: int) -> Iterator[str]:
    """Head lines and remarks; the logs themselves go straight to stdout."""
    read: dict[Path, int] = {}
    asked, ended = -_ASK_S, ""
    while True:
        for start in by_start(trial.folder):
            if rank in start.logs:
                log = start.logs[rank]
                if log not in read:
                    yield _head(start, rank)
                read[log] = _copy(log, read.get(log, 0))
        if ended:
            yield ended
            return
        if trial.result() is not None:
            ended = f"==> trial {trial.name} is done <=="
        elif time.monotonic() - asked >= _ASK_S:
            state = states.look(Sweep.load(sweep.folder)).trials[_place(sweep, trial)]
            asked = time.monotonic()
            if state.state in ENDED_BADLY:
                ended = f"==> trial {trial.name} {state.state.lower()}: {state.remark} <=="
            elif state.state == "WAITING" and not read:
                print(f"trial {trial.name} waits: {state.reason}", file=sys.stderr, flush=True)
        if not ended:
            time.sleep(_POLL_S)


def _few(numbers: list[int]) -> str:
    from launcher.slurm.rows import array_spec

    return array_spec(numbers)
