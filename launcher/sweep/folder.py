"""The sweep folder: sweep.json and a folder for each trial. No other state is kept anywhere.

SWEEP/sweep.json         what was run, by whom, when, with which versions; the submitted jobs
SWEEP/<n>/config.yaml    the whole config of trial n
SWEEP/<n>/metrics.jsonl  written as training goes
SWEEP/<n>/trained.json   between training and the end of the evaluation: the result so far
SWEEP/<n>/result.json    written at the very end, only on success: a trial is done only if it is there
SWEEP/<n>/log/           what each rank printed
SWEEP/code/<n>/          the launcher's code that the trials run (see kept_code)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import cast

from launcher import whole_file
from launcher.dotted_keys import at
from launcher.findings import Finding, Refused
from launcher.slurm import client
from launcher.sweep import kept_code, new_folder, origin
from launcher.sweep.array_elements import Job
from launcher.sweep.records import ExperimentRecord, Kind, NewTrial, PlainConfig, SweepRecord, TrialRecord
from launcher.sweep.trial import BETA, Trial, labels

_ELSEWHERE = "choose another folder (hydra.sweep.dir)"
FORMAT = 1  # of sweep.json; a reader refuses a newer one
# submitit (and Slurm, in --output) replace these by ids anywhere in a path.
_PLACEHOLDERS = re.compile("%[jtAa]")


class FolderTaken(Refused):
    """The folder holds a sweep already."""


class Sweep:
    """A sweep folder that exists. Made by `create`, opened by `load`."""

    def __init__(self, folder: Path, data: SweepRecord) -> None:
        self.folder = folder
        self.data = data
        """sweep.json as it was when read."""

    @classmethod
    def create(
        cls,
        folder: Path | str,
        *,
        command: Sequence[str],
        experiment: ExperimentRecord,
        trials: Sequence[NewTrial],
        mode: int = 0o700,
    ) -> Sweep:
        """Write the folder completely or not at all.

        `folder` may exist already, with Hydra's files in it, but not a sweep. Raises Refused, FolderTaken.
        """
        sweep = cls.planned(folder, command=command, experiment=experiment, trials=trials)
        folder, data = sweep.folder, sweep.data
        if (folder / "sweep.json").exists():
            raise FolderTaken([Finding(str(folder), "", "holds a sweep already", _ELSEWHERE)])
        beside = folder.with_name(f".{folder.name}.new-{secrets.token_hex(4)}")
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir(mode=mode)
            beside.chmod(mode)  # the umask limits mkdir's mode
            new_folder.write_configs(beside, enumerate(config for _, config in trials))
            kept_code.write(beside, 0)
            whole_file.write_json(beside / "sweep.json", data)
            new_folder.put_in_place(beside, folder, mode)
        except UnicodeEncodeError as error:
            why = "a path or a text in its configs has bytes that are not UTF-8"
            raise Refused([Finding(str(folder), "", why, "give other names to those folders")]) from error
        except OSError as error:
            if (folder / "sweep.json").exists():  # another process was faster
                raise FolderTaken([Finding(str(folder), "", "holds a sweep already", _ELSEWHERE)]) from error
            why = f"cannot be written ({error.strerror or error})"
            raise Refused([Finding(str(folder), "", why, _ELSEWHERE)]) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)  # already renamed if all went well
        return sweep

    @classmethod
    def planned(
        cls,
        folder: Path | str,
        *,
        command: Sequence[str],
        experiment: ExperimentRecord,
        trials: Sequence[NewTrial],
    ) -> Sweep:
        """The sweep that `create` would write. Raises Refused if the folder's name cannot be used."""
        folder = Path(os.path.abspath(Path(folder).expanduser()))
        if _PLACEHOLDERS.search(str(folder)):
            why = "submitit and Slurm put ids in the place of %j, %t, %A and %a in paths"
            raise Refused([Finding(str(folder), "", why, "choose a folder without them")])
        data: SweepRecord = {
            "format": FORMAT,
            "id": f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": list(command),
            "cwd": os.getcwd(),
            "user": origin.user(),
            "host": socket.gethostname(),
            "git": origin.git_state(),
            "versions": origin.versions(),
            "code": [kept_code.sha256_today()],
            "experiment": experiment,
            "trials": [_entry(number, *trial) for number, trial in enumerate(trials)],
            "jobs": [],
        }
        return cls(folder, data)

    @classmethod
    def load(cls, path: Path | str) -> Sweep:
        """Open a sweep folder. Raises Refused if it is not a sweep folder or cannot be read."""
        folder = Path(os.path.abspath(Path(path).expanduser()))
        file = folder / "sweep.json"
        try:
            with whole_file.regular(file) as stream:
                data = json.loads(stream.read())
        except (FileNotFoundError, NotADirectoryError) as error:
            why = "is no sweep folder (it has no sweep.json)"
            raise Refused([Finding(str(folder), "", why, "name the folder that a sweep printed")]) from error
        except (OSError, ValueError, RecursionError) as error:
            raise Refused([Finding(str(file), "", f"cannot be read ({error})")]) from error
        if not isinstance(data, dict) or not isinstance(data.get("format"), int) or data["format"] > FORMAT:
            why = f"has a format that this version does not know (it knows up to {FORMAT})"
            raise Refused([Finding(str(file), "", why, "use a newer version")])
        sweep = cls(folder, cast("SweepRecord", data))
        try:
            sweep._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused([Finding(str(file), "", f"is damaged ({error!r})")]) from error
        return sweep

    def _check(self) -> None:
        """Raises KeyError, TypeError, ValueError or AttributeError if sweep.json lacks required data."""
        trials = self.trials
        labels(trials)
        for trial in trials:
            f"{int(trial.number)} {trial.name}"
        self.experiment.get("name")
        _ = self.jobs

    @property
    def own(self) -> bool:
        """Whether folder and sweep.json belong to this user. Others' sweeps are read-only."""
        owners = {path.lstat().st_uid for path in (self.folder.resolve(), self.folder / "sweep.json")}
        return owners == {os.geteuid()}

    def refuse_foreign(self, what: str) -> None:
        """Raises Refused for another user's sweep: its files could make this user run or stop something."""
        if not self.own:
            owner = self.folder.stat().st_uid
            why = f"belongs to another user (id {owner})"
            raise Refused([Finding("SWEEP", str(self.folder), why, f"its owner can {what} it; you can look at it")])

    @property
    def shown(self) -> str:
        """The folder for display: relative to the current folder if it is inside it."""
        here = os.getcwd() + os.sep
        return str(self.folder).removeprefix(here)

    @property
    def trials(self) -> list[Trial]:
        """All trials, by number."""
        return [
            Trial(entry["number"], tuple(entry["overrides"]), entry["beta"], self.folder / str(entry["number"]))
            for entry in self.data["trials"]
        ]

    @property
    def experiment(self) -> ExperimentRecord:
        return self.data["experiment"]

    @property
    def jobs(self) -> list[Job]:
        """What was submitted for this sweep, oldest first."""
        return [Job.from_json(record) for record in self.data["jobs"]]

    def submitted(self) -> list[Job]:
        """`jobs`, with the ids and clusters that sbatch wrote ("" if it wrote no id), oldest first.

        Includes the continuations that jobs have submitted: arrays with one element, whose index is `first`.
        """
        jobs = []
        for job in self.jobs:
            if job.script and (receipt := client.read_receipt(self.receipt(job.script))):
                number, named = receipt
                job = replace(job, id=job.id or str(number), cluster=named or job.cluster, cluster_named=bool(named))
            jobs.append(job)
        return sorted([*jobs, *self._continuations()], key=lambda job: job.submitted)

    def _continuations(self) -> Iterator[Job]:
        """The jobs that launcher.job.slurm_job.continuation has recorded: trial<n>-after-<array>_<index>.id"""
        for path in (self.folder / "slurm").glob("trial*-after-*_*.id"):
            trial, index = path.stem.partition("-")[0].removeprefix("trial"), path.stem.rpartition("_")[2]
            when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            number, cluster = client.read_receipt(path) or ("", "")
            yield Job(
                kind="slurm", id=str(number), trials=[int(trial)], first=int(index), submitted=when, script=path.name,
                cluster=cluster,
            )  # fmt: skip

    def receipt(self, script: str) -> Path:
        """The file into which sbatch writes the array's id; `script` is the script's name in the folder slurm/."""
        return (self.folder / "slurm" / script).with_suffix(".id")

    def add_trials(self, trials: Sequence[NewTrial]) -> list[Trial]:
        """Add trials to the sweep, with the next numbers; for sweepers that choose them batch by batch."""
        with self._changing() as data:
            first = len(data["trials"])
            new_folder.write_configs(self.folder, enumerate((config for _, config in trials), first))
            data["trials"] += [_entry(number, *trial) for number, trial in enumerate(trials, first)]
        return self.trials[first:]

    def record_job(
        self,
        kind: Kind,
        job_id: str,
        trials: Iterable[int],
        *,
        script: str = "",
        name: str = "",
        share: int = 1,
        code: int = 0,
        cluster: str = "",
    ) -> None:
        """Record in sweep.json what was submitted; see Job."""
        job = Job(
            kind=kind, id=job_id, trials=list(trials), submitted=datetime.now().astimezone(), script=script, name=name,
            share=share, code=code, cluster=cluster,
        )  # fmt: skip
        with self._changing() as data:
            data["jobs"].append(job.to_json())

    def code_of(self, trial: int) -> int | None:
        """The number of the copy of the launcher's code that a trial ran last. None in a sweep that keeps no code."""
        if not self.data.get("code"):
            return None
        training = [job for job in self.jobs if job.kind != "evaluation"]  # an evaluation runs the clone's code
        return next((job.code for job in reversed(training) if trial in job.trials), 0)

    def keep_code(self) -> int:
        """Keep the code that runs now as a further copy, unless one of the copies equals it. Returns its number."""
        with self._changing() as data:
            copies, today = data.setdefault("code", []), kept_code.sha256_today()
            if today not in copies:
                kept_code.write(self.folder, len(copies))
                copies.append(today)
            return copies.index(today)

    def check_code(self, number: int) -> None:
        """Raises Refused if a copy of the code is not what it was when it was written."""
        if kept_code.sha256_of(self.folder, number) != self.data["code"][number]:
            why = "the launcher's code that the sweep keeps is missing or was changed"
            place = kept_code.place(self.folder, number)
            raise Refused([Finding(str(place), "", why, "run the code of today: retry --code current")])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[SweepRecord]:
        """sweep.json as it is now, written back afterwards. One writer at a time; readers see the old or new file."""
        with whole_file.locked(self.folder / ".lock"):
            data: SweepRecord = json.loads((self.folder / "sweep.json").read_bytes())
            yield data
            whole_file.write_json(self.folder / "sweep.json", data)
            self.data = data


def _entry(number: int, overrides: Sequence[str], config: PlainConfig) -> TrialRecord:
    return {"number": number, "overrides": list(overrides), "beta": _beta(config)}


def _beta(config: PlainConfig) -> float | None:
    beta = at(config, BETA)
    return float(beta) if isinstance(beta, (int, float)) and not isinstance(beta, bool) else None
