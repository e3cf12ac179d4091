"""examples:
python -m launcher logs 1                 trial 1 of the last sweep: the output of rank 0, in all starts;
                                          if the trial failed, only the error of the rank that failed first
python -m launcher logs 1 --all           the whole log of that rank, even if the trial failed
python -m launcher logs 1 --rank 3 -f     the output of rank 3 as it grows, until the trial ends
python -m launcher logs 1 --batch 4711    the output of its batch script, srun and Slurm; sweep of array 4711
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launcher import whole_file
from launcher.findings import Finding, Refused
from launcher.slurm.rows import array_spec
from launcher.status import states
from launcher.status.trial_state import ENDED_BADLY, TrialState
from launcher.sweep import find, starts
from launcher.sweep.array_elements import elements
from launcher.sweep.folder import Sweep
from launcher.sweep.logs import StartLogs, by_start, failure, srun_log, tail
from launcher.sweep.trial import Trial
from launcher.terminal import printable, printable_line

_POLL_S = 0.5
_ASK_S = 30.0  # between two questions to Slurm while following
_LAST_LINES = 20
_CHUNK = 1 << 16


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", metavar="TRIAL", help="a trial's number, or an element of an array, 4711_2")
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="folder, array id, name or `last`")
    parser.add_argument("--rank", type=int, metavar="R", help="default: the rank that failed first, else 0")
    parser.add_argument("-f", "--follow", action="store_true", help="print new output until the trial ends")
    parser.add_argument("--all", action="store_true", help="the whole log, even if the trial failed")
    parser.add_argument("--batch", action="store_true", help="the output of the batch script, not of a rank")


def run(args: argparse.Namespace) -> int:
    sweep, chosen = find.trials_and_sweep([args.trial], args.sweep)
    if len(chosen) != 1:
        raise Refused([Finding("TRIAL", args.trial, "is not a single trial", "name one by its number, such as 0")])
    (trial,) = chosen
    if args.batch:
        return _batch(sweep, trial)
    printed = by_start(trial.folder)
    if args.rank is not None and printed and not any(args.rank in start.logs for start in printed):
        ranks = sorted({rank for start in printed for rank in start.logs})
        raise Refused([Finding("--rank", str(args.rank), "has no log", f"there are: {array_spec(ranks)}")])
    if args.follow:
        return _follow(sweep, trial, args.rank or 0)
    # Slurm need not be asked if the trial has its result or the rank is given.
    if args.rank is None and trial.result() is None:
        state = states.look(sweep).trials[_place(sweep, trial)]
        if state.state in ENDED_BADLY and not args.all:
            return _why(sweep, state, printed)
        if not printed:
            print(f"trial {trial.name} has printed nothing: {state.state.lower()}: {state.remark}", file=sys.stderr)
            return 0
        first_failure = failure(printed[-1], states.batch_log(sweep, state)) if state.state in ENDED_BADLY else None
        args.rank = first_failure.rank if first_failure and first_failure.rank is not None else 0
    for start in printed:
        _whole(start, args.rank or 0)
    return 0


def _place(sweep: Sweep, trial: Trial) -> int:
    return [other.number for other in sweep.trials].index(trial.number)


def _why(sweep: Sweep, state: TrialState, printed: list[StartLogs]) -> int:
    """Print how each start of a failed trial ended, and the full error of the rank that failed first."""
    code = f", exit code {state.exit_code}" if state.exit_code else ""
    word = f" ({state.slurm}{code})" if state.slurm else code
    print(printable(f"trial {state.trial.name} {state.state.lower()}{word}: {state.remark}"))
    batch = states.batch_log(sweep, state)
    noted = {start.name: start.why for start in state.starts}
    for place, start in enumerate(printed, 1):
        first_failure = failure(start, batch if start is printed[-1] else ())
        if place < len(printed):
            error = noted.get(start.name) or (first_failure.error if first_failure else "ended without an error")
            print(printable(f"start {place} of {len(printed)}, job {start.name}: {error}"))
            continue
        rank = first_failure.rank if first_failure and first_failure.rank is not None else min(start.logs)
        which = f"start {place} of {len(printed)}, job {start.name}, rank {rank} of {len(start.logs)}"
        print(f"{which}: {start.logs[rank]}\n")
        for line in first_failure.lines if first_failure else tail(start.logs[rank])[-_LAST_LINES:]:
            print(f"  {printable_line(line)}")
    if batch and (not printed or "memory" in state.reason):
        print("\nthe batch script:")
        for line in batch[-_LAST_LINES:]:
            print(f"  {printable_line(line)}")
    if printed:
        print(f"\nthe whole log: python -m launcher logs {state.trial.number} {sweep.folder} --all")
    return 0


def _batch(sweep: Sweep, trial: Trial) -> int:
    parts = elements(sweep.submitted()).get(trial.number, [])
    printed = [sweep.folder / "slurm" / f"{part.name}.out" for part in parts]
    printed += [srun_log(trial.folder, start.name) for start in starts.read(trial.folder)]
    there = [path for path in printed if path.exists()]
    for path in there:
        print(f"==> {path} <==")
        _copy(path)
    if not there:
        print(f"trial {trial.name}: its batch script has printed nothing", file=sys.stderr)
    return 0


def _whole(start: StartLogs, rank: int) -> None:
    log = start.logs.get(rank)
    if log is not None:
        print(_head(start, rank), flush=True)
        _copy(log)


def _head(start: StartLogs, rank: int) -> str:
    why = next((known.why for known in starts.read(start.folder.parent) if known.name == start.name), "")
    return printable(f"==> job {start.name}, rank {rank}: {start.logs[rank]}{f' (ended: {why})' if why else ''} <==")


def _copy(path: Path, position: int = 0) -> int:
    """Print a file from `position` on, byte by byte; returns where it ended."""
    sys.stdout.flush()
    with whole_file.regular(path) as stream:
        stream.seek(position)
        while block := stream.read(_CHUNK):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return stream.tell()


def _follow(sweep: Sweep, trial: Trial, rank: int) -> int:
    """Print the logs of all starts as they grow, until the trial has ended or Ctrl-C is pressed."""
    try:
        for line in _followed(sweep, trial, rank):
            print(line, flush=True)
    except KeyboardInterrupt:
        return 0
    return 0


def _followed(sweep: Sweep, trial: Trial, rank: int) -> Iterator[str]:
    """Yields head lines and remarks, and prints the logs itself."""
    read: dict[Path, int] = {}
    asked_at, ended = -_ASK_S, ""
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
        elif time.monotonic() - asked_at >= _ASK_S:
            state = states.look(Sweep.load(sweep.folder)).trials[_place(sweep, trial)]
            asked_at = time.monotonic()
            if state.state in ENDED_BADLY:
                ended = printable(f"==> trial {trial.name} {state.state.lower()}: {state.remark} <==")
            elif state.state == "WAITING" and not read:
                print(f"trial {trial.name} waits: {state.reason}", file=sys.stderr, flush=True)
        if not ended:
            time.sleep(_POLL_S)
