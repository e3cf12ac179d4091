"""Checks whether sweeps can run on a machine: NeMo, GPUs, disks, clock. For `python -m launcher doctor`.

Each check is a function that yields lines. None imports torch or NeMo into this process.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import gpus, machine, units
from launcher.check import disk
from launcher.nemo import versions

OK, WARNING, MISSING = "ok", "warning", "missing"

#: The packages needed to submit, in versions known to work together (pyproject.toml says why).
LIGHT = {"hydra-core": "1.3.8", "omegaconf": "2.3.0", "submitit": "1.5.4", "hydra-submitit-launcher": "1.2.0"}
_IMPORTED = ("torch", "nemo", "nemo_aligner", "megatron")
_INSTALL = "pip install -e '.[train]' in the clone, or run trials in NVIDIA's container: cluster=slurm_pyxis"
_IMPORT_PATIENCE_S = 300.0
_CLOCK_S = 2.0  # more than a slow disk explains; it matters since make, resumption and time-outs compare file times
_SPACE = 5e9  # free bytes below which a disk is reported as nearly full
# Imports in the same order as a trial: the stand-ins first, then NeMo. The last line of the output is the result.
_IMPORT = """
import json, time
from launcher.train.nemo_aligner import standins
began = time.monotonic()
gaps = standins.install()
import torch
with standins.importing():
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
print()
print(json.dumps({"seconds": time.monotonic() - began, "torch": torch.__version__, "gaps": gaps,
                  "cuda": torch.cuda.device_count() if "cuda" not in gaps else 0}))
"""


@dataclass(frozen=True)
class Line:
    """The result of one check."""

    topic: str
    state: str
    """ok; warning (something will not work, or not well); missing (sweeps cannot run here without it)."""
    what: str
    """What was found, and what that means."""
    remedy: str = ""


def python() -> Iterator[Line]:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield Line("Python", OK if good else WARNING, f"{version}, {sys.executable}", "" if good else "use 3.10 to 3.12")
    yield from _packages("launcher", LIGHT, MISSING, "pip install -e . in the clone")


def nemo(deep: bool, needed: bool) -> Iterator[Line]:
    """Check NeMo's versions; with `deep`, also import it. If `needed` (nothing else here can train), its absence is
    `missing`.
    """
    absent = [name for name in _IMPORTED if importlib.util.find_spec(name) is None]
    if absent:
        state = MISSING if needed else WARNING
        where = "" if needed else ": trials run in a container, or in another Python (cluster.python)"
        yield Line("NeMo", state, f"no {', '.join(absent)} in this Python{where}", _INSTALL)
        return
    there = versions.installed()
    wrong = versions.unsupported_reason(there)
    if wrong:
        yield Line("NeMo", WARNING, f"{wrong}: trials refuse to start", versions.REMEDY)
    else:
        yield Line("NeMo", OK, ", ".join(f"{name} {version}" for name, version in there.items()))
    if deep:
        yield _import()
    else:
        yield Line("NeMo", OK, "is installed; --deep also imports it, which takes 15 s or more")


def _packages(topic: str, expected: dict[str, str], lacking: str, remedy: str) -> Iterator[Line]:
    there: dict[str, str] = {}
    for name in expected:
        try:
            there[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line(topic, lacking, f"{name} is not installed", remedy)
    other = {name: version for name, version in there.items() if version.partition("+")[0] != expected[name]}
    if other:
        listed = ", ".join(f"{name} {version} (known to work: {expected[name]})" for name, version in other.items())
        yield Line(topic, WARNING, f"other versions: {listed}", remedy)
    elif there:
        yield Line(topic, OK, ", ".join(f"{name} {version}" for name, version in there.items()))


def _import() -> Line:
    """Import NeMo-Aligner as a trial does, in a separate process."""
    print("importing NeMo-Aligner, 15 s to some minutes on a slow disk ...", file=sys.stderr, flush=True)
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_PATIENCE_S,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        what = f"its import takes over {_IMPORT_PATIENCE_S:.0f} s, in every rank of every trial"
        return Line("NeMo", WARNING, what, "put the environment on a faster disk, or use a container")
    if done.returncode:
        error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Line("NeMo", MISSING, f"cannot be imported: {error}", _INSTALL)
    answer = json.loads(done.stdout.splitlines()[-1])
    lacks = f"; PyTorch stands in for {', '.join(answer['gaps'])}" if answer["gaps"] else ""
    what = f"imported in {answer['seconds']:.0f} s; torch {answer['torch']}, {answer['cuda']} CUDA devices{lacks}"
    slow = answer["seconds"] > 120
    return Line("NeMo", WARNING if slow else OK, what, "put the environment on a faster disk" if slow else "")


def devices() -> Iterator[Line]:
    """Cores, memory, GPUs, and whether bf16 is fast on them."""
    here = machine.look()
    yield Line("machine", OK, f"{platform.node()}: {here.cores} cores, {here.memory_gb:.1f} GB of memory available")
    try:
        cards = gpus.query()
    except gpus.NoAnswer as error:
        yield Line("GPUs", WARNING, f"{error}: trials here would run on the CPU", "check the driver, or reboot")
        return
    if not cards:
        fast = machine.cpu_has_bf16()
        units = "has bf16 units" if fast else "has no bf16 units, so trials compute in fp32 (trainer.precision=auto)"
        yield Line("GPUs", OK, f"none here: trials on this machine run on its CPU, which {units}")
        return
    for name in sorted({card.name for card in cards}):
        alike = [card for card in cards if card.name == name]
        what = f"{len(alike)} x {name}, {alike[0].memory_gib:.0f} GiB, driver {alike[0].driver}"
        if alike[0].bf16:
            yield Line("GPUs", OK, f"{what}, bf16 units")
        else:
            slow = "before Ampere, without bf16 units: bf16 is emulated or refused"
            yield Line("GPUs", WARNING, f"{what}; {slow}", "write trainer.precision=32 for trials on them")


def runs_folder(runs: Path, many_nodes: bool) -> Iterator[Line]:
    """Check the folder for sweeps: writable, shared, enough space, and a clock that agrees with this machine's."""
    place = disk.existing(runs)
    system = disk.file_system(place)
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        remedy = "name another folder: doctor --runs DIR, paths.runs=DIR"
        yield Line("runs", MISSING, f"{place} is not writable", remedy)
        return
    where = f"{runs} is on {system}" if system else str(runs)
    if many_nodes and system is not None and system.local:
        what = f"{where}, {system.local}: compute nodes may not see it"
        yield Line("runs", WARNING, what, "set paths.runs to the cluster's shared disk, unless this machine serves it")
    else:
        yield Line("runs", OK, where)
    yield _space("space", place, "checkpoints of an 8B trial with LoRA take 3 GB")
    yield _clock(place)
    yield _locks(place)


def scratch() -> Iterator[Line]:
    """Check the folder for temporary files, which submitit, torch and NeMo use."""
    yield _space("temp", Path(tempfile.gettempdir()), "torch and NeMo write there while they run")


def _space(topic: str, folder: Path, why: str) -> Line:
    room = os.statvfs(folder)
    free = disk.free_bytes(folder)
    if room.f_files and room.f_favail == 0:
        return Line(topic, WARNING, f"the disk of {folder} is out of inodes: no file can be created", "delete files")
    if free < _SPACE:
        return Line(
            topic, WARNING, f"only {units.size(free)} free in {folder}; {why}", "free some, or use another disk"
        )
    return Line(topic, OK, f"{units.size(free)} free in {folder} (quotas are not counted)")


def _locks(folder: Path) -> Line:
    """Check whether the disk has flock, which launchers on several machines use to exclude each other."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        what = f"the disk of {folder} has no flock ({error.strerror}): files named *.held are used instead"
        return Line("locks", WARNING, what, "on Lustre, mount with -o flock")
    return Line("locks", OK, f"the disk of {folder} has flock")


def _clock(folder: Path) -> Line:
    """Compare clocks: on a shared disk the file server sets the time stamp of a new file."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            stamped, after = os.stat(file.name).st_mtime, time.time()
    except OSError as error:
        what = f"cannot write a file in {folder}: {error.strerror}"
        return Line("clock", MISSING, what, "check its disk and your quota, or name another folder: paths.runs=DIR")
    off = max(before - stamped, stamped - after, 0.0)
    if off > _CLOCK_S:
        what = f"the clocks of the disk of {folder} and of this machine differ by {off:.0f} s: ages of files are wrong"
        return Line("clock", WARNING, what, "synchronise both (chrony, ntpd)")
    return Line("clock", OK, f"agrees with that of the disk ({time.strftime('%Y-%m-%d %H:%M:%S %z')})")
