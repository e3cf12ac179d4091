"""examples:
  python -m launcher doctor                     takes a few seconds; imports nothing heavy
  python -m launcher doctor --deep              imports NeMo as well, as a trial would
  python -m launcher doctor --runs /scratch/me  checks the folder where sweeps will be written

exit codes: 0 sweeps can run here, perhaps with warnings; 1 something is missing.

--json, format 1; later versions only add keys.
  format, ok, exit_code, seconds
  checks   [{topic, state, what, remedy}]       state: ok, warning, missing
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.check import doctor, doctor_slurm
from launcher.check.cluster_limits import Site
from launcher.check.doctor import MISSING, OK, WARNING, Line

FORMAT = 1
_COLOURS = {OK: "32", WARNING: "33", MISSING: "31"}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="the folder of sweeps (runs)")
    parser.add_argument("--deep", action="store_true", help="import NeMo too, which takes 15 s or more")
    parser.add_argument("--json", action="store_true", help="for scripts")


def run(args: argparse.Namespace) -> int:
    """0: sweeps can run here; 1: something is missing."""
    began = time.monotonic()
    lines = []
    for line in checks(args.runs.expanduser().absolute(), args.deep):
        lines.append(line)
        if not args.json:
            print(_text(line), flush=True)
    code = 1 if any(line.state == MISSING for line in lines) else 0
    seconds = round(time.monotonic() - began, 1)
    if args.json:
        as_dicts = [vars(line) for line in lines]
        answer = {"format": FORMAT, "ok": code == 0, "exit_code": code, "seconds": seconds, "checks": as_dicts}
        print(json.dumps(answer, indent=1))
    else:
        print(_summary(lines, seconds))
    return code


def checks(runs: Path, deep: bool) -> Iterator[Line]:
    """All lines: Python, Slurm, containers, NeMo, devices, folders."""
    yield from doctor.python()
    site = Site()
    slurm_lines = []
    for line in doctor_slurm.cluster(site):
        slurm_lines.append(line)
        yield line
    on_cluster = any(line.state != WARNING for line in slurm_lines)
    containers = False
    if on_cluster:
        lines, containers = doctor_slurm.containers()
        yield from lines
    yield from doctor.nemo(deep, needed=not containers)
    yield from doctor.devices()
    answered = any(line.topic == "partitions" for line in slurm_lines)
    sizes = [partition.total_nodes for partition in site.cluster.partitions] if answered else []
    yield from doctor.runs_folder(runs, many_nodes=on_cluster and max(sizes, default=2) > 1)
    yield from doctor.scratch()


def _text(line: Line) -> str:
    state = f"{line.state:<8}"
    if sys.stdout.isatty():
        state = f"\033[{_COLOURS[line.state]}m{state}\033[0m"
    text = " ".join(f"{line.what}{'; ' if line.remedy else ''}{line.remedy}".split())
    return f"{state} {line.topic:<11} {text}"


def _summary(lines: list[Line], seconds: float) -> str:
    counts = {state: sum(line.state == state for line in lines) for state in (MISSING, WARNING)}
    if counts[MISSING]:
        return f"{counts[MISSING]} missing, {counts[WARNING]} warnings ({seconds} s): sweeps cannot run here yet"
    many = "s" if counts[WARNING] != 1 else ""
    return f"sweeps can run here; {counts[WARNING]} warning{many} ({seconds} s)"
