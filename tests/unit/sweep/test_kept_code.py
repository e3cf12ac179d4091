"""The copy of the launcher's code in a sweep's folder: it is what jobs import, whatever happens to the clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.findings import Refused
from launcher.slurm.script import text
from launcher.submit import resubmit, to_slurm
from launcher.sweep import kept_code
from launcher.sweep.folder import Sweep
from tests.unit.conftest import changed
from tests.unit.slurm.test_script import ran, request
from tests.unit.sweep.test_sweep import create


def imported(folder: Path, number: int, code: str) -> str:
    """What `code` prints in a job's Python: without the clone, in a folder where nobody else can write."""
    env = {**os.environ, "PYTHONPATH": kept_code.pythonpath(folder, number), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["s", "a:b, c"])
def test_a_sweep_keeps_the_code_that_made_it(tmp_path: Path, name: str) -> None:
    sweep = create(tmp_path / name)
    assert sweep.data["code"] == [kept_code.sha256_today()]
    assert kept_code.sha256_of(sweep.folder, 0) == kept_code.sha256_today()
    archive = str(kept_code.place(sweep.folder, 0) / "launcher.zip")
    asked = "import launcher.job.begin_end, launcher.train.slurm_rank; print(launcher.job.begin_end.__file__)"
    assert imported(sweep.folder, 0, asked) == f"{archive}/launcher/job/begin_end.py"
    assert sum(path.stat().st_size for path in kept_code.place(sweep.folder, 0).iterdir()) < 2e6


def test_what_the_reference_cache_is_named_by_is_the_same_from_the_archive(tmp_path: Path) -> None:
    from launcher.train.nemo_aligner.savings import reference_key

    asked = "from launcher.train.nemo_aligner.savings import reference_key as r; print(r.__file__, r._own_code())"
    file, digest = imported(create(tmp_path / "s").folder, 0, asked).split()
    assert "launcher.zip" in file and digest == reference_key._own_code()


def test_requests_name_the_copy_of_each_trial(tmp_path: Path, composed: Any) -> None:
    """Trial 1 was retried with the code of a later day; the next retry runs what each trial ran last."""
    sweep = create(tmp_path / "s")
    (sweep.folder / "code" / "1").mkdir()
    sweep.record_job("slurm", "7", [0, 1, 2], script="0.sbatch")
    sweep.record_job("slurm", "8", [1], script="1.sbatch", code=1)
    sweep.record_job("evaluation", "9", [0, 1, 2], script="evaluate0.sbatch")  # names no copy, and hides none
    config, _ = composed("cluster=slurm", "model=tiny", "data=sample")
    configs = {trial.number: config for trial in sweep.trials}
    requests = list(to_slurm.arrays(sweep, configs, None))
    assert [(request.trials, request.code) for request in requests] == [([0, 2], 0), ([1], 1)]
    for number, made in enumerate(requests):
        assert made.scripts == sweep.folder / "code" / str(number)
        assert made.pythonpath == f"{made.scripts}/launcher.zip", "nothing of the clone"
    (today,) = to_slurm.arrays(sweep, configs, None, code=1)
    assert (today.trials, today.code) == ([0, 1, 2], 1)
    own = changed(config, {"engine": "mine.engine"})
    assert next(to_slurm.arrays(sweep, {0: own}, None)).pythonpath.endswith(f"/code/0/launcher.zip:{to_slurm._ROOT}"), (
        "an engine of one's own"
    )


def test_a_retry_runs_the_kept_code_or_todays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sweep = create(tmp_path / "s")
    assert resubmit.code_to_run(sweep, sweep.trials, current=False) is None and capsys.readouterr().err == ""
    assert resubmit.code_to_run(sweep, sweep.trials, current=True) == 0, "it is the same"
    files = {**kept_code._today(), "launcher/__init__.py": b"updated = True\n"}
    monkeypatch.setattr(kept_code, "_today", lambda: files)
    assert resubmit.code_to_run(sweep, sweep.trials, current=False) is None
    assert "code/0" in (note := capsys.readouterr().err) and "--code current" in note
    assert resubmit.code_to_run(sweep, sweep.trials, current=True) == 1
    assert resubmit.code_to_run(sweep, sweep.trials, current=True) == 1, "one copy is enough"
    stored = json.loads((sweep.folder / "sweep.json").read_text())["code"]
    assert len(stored) == 2 and stored[1] == kept_code.sha256_of(sweep.folder, 1) == kept_code.sha256_today()
    assert imported(sweep.folder, 1, "import launcher; print(launcher.updated)") == "True"


def test_a_changed_copy_is_not_run(tmp_path: Path) -> None:
    sweep = create(tmp_path / "s")
    functions = kept_code.place(sweep.folder, 0) / "functions.sh"
    functions.chmod(0o600)
    functions.write_text(functions.read_text() + "touch ran\n")
    with pytest.raises(Refused, match="--code current"):
        resubmit.code_to_run(sweep, sweep.trials, current=False)
    shutil.rmtree(functions.parent)
    with pytest.raises(Refused, match="--code current"):
        resubmit.code_to_run(sweep, sweep.trials, current=False)


def test_a_sweep_of_before_gets_todays_code(tmp_path: Path) -> None:
    sweep = create(tmp_path / "s")
    data = json.loads((sweep.folder / "sweep.json").read_text())
    del data["code"]
    (sweep.folder / "sweep.json").write_text(json.dumps(data))
    shutil.rmtree(sweep.folder / "code")
    sweep = Sweep.load(sweep.folder)
    assert sweep.code_of(0) is None
    assert resubmit.code_to_run(sweep, sweep.trials, current=False) == 0
    assert kept_code.sha256_of(sweep.folder, 0) == Sweep.load(sweep.folder).data["code"][0]


@pytest.mark.parametrize("name", ["s", "a:b"])
def test_a_script_that_writes_its_sweep_runs_the_copy_from_then_on(tmp_path: Path, name: str) -> None:
    """dpo.sbatch: the clone changes between the first start and the requeue, also the functions of its scripts."""
    sweep = create(tmp_path / name)
    (sweep.folder / "0" / "config.yaml").write_text("cluster:\n  name: slurm\n")
    clone = tmp_path / "clone"
    shutil.copytree(to_slurm._ROOT + "/sbatch", clone / "sbatch")
    changed = (clone / "sbatch" / "functions.sh").read_text().replace("-m launcher.train.slurm_rank", "-m hostile")
    (clone / "sbatch" / "functions.sh").write_text(changed)
    (clone / "launcher").mkdir()
    (clone / "launcher" / "__init__.py").write_text("raise SystemExit('the clone was imported')\n")
    made = text(request(sweep=sweep.folder, trials=[0], pythonpath=str(clone), scripts=clone / "sbatch",
                        python_on_node=sys.executable))  # fmt: skip
    env, words, output = ran(tmp_path, made, "write_sweep=(:)")
    assert "== start 8.0 == trial 0" in output and "the clone was imported" not in output
    assert words[-2] == "launcher.train.slurm_rank"
    assert env["PYTHONPATH"].split(":")[0].endswith("code/0/launcher.zip")
