"""The table of faults: what a fault cost a trial, and whether its result is that of a trial to which nothing happened.

python -m pytest tests/slurm -k faults           # prints the table's rows at the end
python -m tests.slurm.faults docs/faults.md      # writes those that pytest last saw, of all faults
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.status.trial_state import Look
from launcher.sweep import metrics
from launcher.sweep.trial import Trial
from tests.slurm.existing import Existing
from tests.slurm.victim import SAVE, Sweeping, trained

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".pytest_cache" / "v" / "faults"
Metrics = dict[tuple[int, str], float]


@dataclass(frozen=True)
class Result:
    """What training left, times aside: all that has to be equal bit for bit."""

    metrics: Metrics
    """Every figure in metrics.jsonl by (step, name)."""
    weights: Mapping[str, str]
    """The adapter's tensors in megatron_gpt.nemo, hashed, by the name of their part of the file."""
    evaluation: Any
    """result.json's KL and greedy answers."""
    repeated: tuple[str, ...] = ()
    """Steps done again after a fault that came out differently than before it."""

    @classmethod
    def of(cls, trial: Trial) -> Result:
        """Of a trial that is done."""
        found: Metrics = {}
        repeated = []
        for line in metrics.read_all(trial.folder / "metrics.jsonl"):
            for name, value in line.items():
                if not name.startswith(("train/", "val/")) or name.endswith("time"):
                    continue
                key = (line["step"], name)
                if key in found and found[key] != value:
                    repeated.append(f"{name} of step {line['step']}: {found[key]!r}, then {value!r}")
                found[key] = value
        result = trial.result()
        assert result is not None, f"{trial.folder} has no result"
        evaluation = {key: value for key, value in result["evaluation"].items() if key != "seconds"}
        return cls(found, _tensors(Path(result["nemo"])), evaluation, tuple(repeated))

    def differs(self, other: Result) -> list[str]:
        """Where this one is not as the other, a line each."""
        found = list(self.repeated)
        for key in sorted(self.metrics.keys() | other.metrics.keys()):
            mine, its = self.metrics.get(key), other.metrics.get(key)
            if mine != its:
                found.append(f"{key[1]} of step {key[0]}: {mine!r}, uninterrupted {its!r}")
        if self.weights != other.weights:
            names = [name for name, value in other.weights.items() if self.weights.get(name) != value]
            found.append(f"weights: {len(names)} of {len(other.weights)} tensors, {', '.join(names[:3])}")
        if self.evaluation != other.evaluation:
            found.append("the evaluation after training")
        return found


def _tensors(nemo: Path) -> dict[str, str]:
    """A .nemo is a tar; the model_weights.ckpt in it torch's zip of a pickle and a raw file for each tensor."""
    with tarfile.open(nemo) as tar:
        packed = tar.extractfile("./model_weights.ckpt")
        assert packed is not None
        with zipfile.ZipFile(io.BytesIO(packed.read())) as weights:
            (index,) = (name for name in weights.namelist() if name.endswith("/data.pkl"))
            folder = index.removesuffix("data.pkl")
            tensors = _Index(io.BytesIO(weights.read(index))).load()
            found = {}
            for name, tensor in tensors.items():
                key, *layout = tensor
                found[name] = f"{layout} {hashlib.sha256(weights.read(f'{folder}data/{key}')).hexdigest()}"
            return found


class _Index(pickle.Unpickler):
    """Reads where each tensor lies, without torch: (its file, type, device, offset, shape, stride)."""

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, device, _ = pid
        return key, kind, device

    def find_class(self, module: str, name: str) -> Any:
        if name == "_rebuild_tensor_v2":
            return lambda storage, offset, shape, stride, *rest: (*storage, offset, shape, stride)
        return dict if name == "OrderedDict" else f"{module}.{name}"


@dataclass
class Row:
    """What a fault did to a trial."""

    fault: str
    before: int
    """Steps done when it came."""
    lost: int
    """Steps that had to be done again."""
    restarts: int
    seconds: float | None
    """From the fault to the next step that was trained by a new start, less `hold`; None: there was no new start."""
    hold: float
    """Seconds that Slurm itself kept the job from starting again."""
    result: str
    """`equal` to the uninterrupted run's, or how many figures differ."""
    troubles: list[str] = field(default_factory=list)
    """Orphans, jobs left, trials run twice or called done too early, figures that differ."""
    note: str = ""
    slurm: str = ""
    """The version of Slurm that it was measured on."""


def row(fault: str, sweep: Sweeping, look: Look, reference: Result, trial: int = 0, note: str = "") -> Row:
    """The row of a trial that has ended, and its troubles."""
    state = look.trials[trial]
    done = state.state == "DONE"
    differences = Result.of(state.trial).differs(reference) if done else []
    troubles = [f"ended {state.state}: {state.reason} {state.error}"] if not done else []
    troubles += [f"still there: {text}" for text in sweep.orphans()]
    troubles += [f"still queued: {text}" for text in sweep.desk.cluster.queue()]
    troubles += [f"run twice at once: {text}" for text in sweep.run_twice()] + sorted(sweep.said)
    if sweep.twice:
        note += f"; the start that Slurm had lost left {sum(sweep.twice.values()):.0f} s after its successor came"
    troubles += differences[:5]
    attempts = [lines for lines in sweep.attempts(trial) if trained(lines)]
    lost, gaps = lost_steps(attempts)
    troubles += gaps
    seconds = None
    faults = sweep.faults.get(trial, [])
    hold = 0.0
    if any(lines[0]["time"] > since for since in faults for lines in attempts):
        hold = holds(sweep, trial)
        seconds = sum(away(attempts, since) for since in faults) - hold
    before = max((max(trained(until(lines, faults[0])), default=0) for lines in attempts), default=0) if faults else 0
    result = "equal" if done and not differences else f"{len(differences)} differ" if done else state.state
    slurm = version(sweep.desk.cluster)
    return Row(fault, before, lost, state.restarts, seconds, hold, result, troubles, note, slurm)


def version(cluster: Existing) -> str:
    """As `sinfo --version` says it: 26.05.1."""
    major, minor, *rest = cluster.version
    return ".".join([str(major), f"{minor:02}", *map(str, rest)])


def lost_steps(attempts: Sequence[list[dict[str, Any]]]) -> tuple[int, list[str]]:
    """(steps that were done again, what is wrong with the order of steps)."""
    lost, reached, troubles = 0, 0, []
    for lines in attempts:
        steps = trained(lines)
        if steps != list(range(steps[0], steps[-1] + 1)):
            troubles.append(f"steps of one start are not one after the other: {steps}")
        if steps[0] > reached + 1:
            troubles.append(f"steps {reached + 1} to {steps[0] - 1} were never trained")
        lost += max(0, reached + 1 - steps[0])
        reached = max(reached, steps[-1])
    return lost, troubles


def until(lines: Sequence[dict[str, Any]], moment: float) -> list[dict[str, Any]]:
    return [line for line in lines if line["time"] <= moment]


def away(attempts: Sequence[list[dict[str, Any]]], since: float) -> float:
    """Seconds from `since` to the first step of the first start after it; 0 where there was none."""
    later = [lines for lines in attempts if lines[0]["time"] > since]
    return next(line["time"] for line in later[0] if "train/loss" in line) - since if later else 0.0


def holds(sweep: Sweeping, trial: int) -> float:
    """Seconds that the job was not eligible, by the accounting: a requeued one has to wait for cred_expire."""
    array = sweep.job(trial).partition("_")[0]
    asked = ("sacct", "-X", "-D", "-n", "-P", "-j", array, "-o", "JobID,Submit,Eligible,Start")
    said = sweep.desk.cluster.run("env", "SLURM_TIME_FORMAT=%s", *asked, check=False)
    total = 0.0
    for line in said.stdout.splitlines():
        name, submitted, eligible, started = line.split("|")
        if name == sweep.job(trial) and eligible.isdigit() and started.isdigit():
            total += max(0, int(eligible) - int(submitted))
    return total


# -- the table ---------------------------------------------------------------------------------------------------------

HEAD = ("fault", "Slurm", "before", "lost", "restarts", "seconds", "hold", "result", "remarks")


def cells(row: Row) -> tuple[str, ...]:
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    hold = f"{row.hold:.0f}" if row.seconds is not None else ""
    trouble = "; ".join(row.troubles) or row.note
    return row.fault, row.slurm, str(row.before), str(row.lost), str(row.restarts), seconds, hold, row.result, trouble


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    table = [HEAD, *map(cells, rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(HEAD) - 1)]
    return "\n".join("  ".join([*map(str.ljust, line, widths), line[-1]]).rstrip() for line in table)


def keep(row: Row) -> None:
    """For `python -m tests.slurm.faults`, which makes one table of several test runs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(row.fault.encode()).hexdigest()[:16]
    (CACHE / f"{name}.json").write_text(json.dumps(asdict(row)))


def kept() -> list[Row]:
    """As `keep` left them: warnings, which may lose nothing, before sudden deaths."""
    rows = [Row(**json.loads(path.read_text())) for path in CACHE.glob("*.json")]
    return sorted(rows, key=lambda row: (row.lost > 0, row.restarts > 0, row.fault.lower()))


_ABOUT = f"""\
# What faults cost a trial

By `tests/slurm/test_faults*.py`: real NeMo-Aligner trains `model=tiny` (fp32, or bf16 where the row says so, dropout
0.05, 24 steps or 120, a checkpoint every {SAVE}) on 2 nodes of a real Slurm, all of it on one machine of 2 cores.
Rows are of several runs of the tests, some of them side by side.

- **before**: steps done when the fault came; **lost**: steps done again: by the tests' bar none after a warning, at
  most {SAVE} after a sudden death
- **seconds**: from the fault to the next step trained, less **hold**, for which Slurm itself kept the requeued job from
  starting (10 s here, 120 s by Slurm's default). NeMo's import is 15 of them on an idle machine, 60 to 180 beside
  other work
- **result**: `equal`: final weights, all metrics and the evaluation are the uninterrupted run's, bit for bit
"""
_CLEAN = "No process or job was left over, no trial ran in two places, none was called done before it was."


def markdown(rows: Sequence[Row]) -> str:
    """docs/faults.md."""
    lines = [_ABOUT] if any(row.troubles for row in rows) else [_ABOUT, _CLEAN, ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the rows that the tests saw last, of all faults, as a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.faults", description=main.__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="default: print them")
    chosen = parser.parse_args(arguments)
    if chosen.file is None:
        print(text(kept()))
    else:
        chosen.file.write_text(markdown(kept()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
