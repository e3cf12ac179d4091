"""Which sweep a user means, and which trials."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.__main__ import COMMANDS, main
from launcher.findings import Refused
from launcher.sweep import find
from launcher.sweep.folder import Sweep


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(find.ENVIRONMENT, raising=False)
    return tmp_path


def make(name: str, age: float, experiment: str = "tune", array: int | None = None, trials: int = 5) -> Sweep:
    configs = [([f"lr={n}"], {"x": n}) for n in range(trials)]
    sweep = Sweep.create(Path(name), command=["x"], experiment={"name": experiment}, trials=configs)
    if array:
        (sweep.folder / "slurm").mkdir()
        (sweep.folder / "slurm" / "0.id").write_text(f"{array}\n")
        sweep.record_job("slurm", "", [3, 4], script="0.sbatch", name="x")
    stamp = os.stat(sweep.folder / "sweep.json").st_mtime - age
    os.utime(sweep.folder / "sweep.json", (stamp, stamp))
    return sweep


def test_the_sweep_that_is_meant(here: Path) -> None:
    old = make("runs/tune/2026-01-01", 300, array=69)
    new = make("runs/tune/2026-01-02", 200)
    other = make("runs/other/deep/er", 100, experiment="else")
    for what, sweep in {
        "last": other,
        "runs/tune/2026-01-02": new,
        str(old.folder): old,
        "2026-01-01": old,
        "tune/2026-01-01": old,
        "tune": new,
        "else": other,
        "er": other,
        "69": old,
        "69_1": old,
        str(new.data["id"]): new,
    }.items():
        assert find.sweep(what).folder == sweep.folder, what
    for what, why in {
        "70": "has submitted this array",
        "nothing": "there are: else, tune",
        "runs/tune": "no sweep",
    }.items():
        with pytest.raises(Refused, match=why):
            find.sweep(what)


def test_other_places(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="no sweep under runs; name a sweep's folder, or set LAUNCHER_RUNS"):
        find.sweep()
    far = make("far/away/s", 0)
    monkeypatch.setenv(find.ENVIRONMENT, f"{here / 'nowhere'}{os.pathsep}{here / 'far'}")
    assert find.sweep().folder == far.folder and find.sweep("s").folder == far.folder


def test_two_of_one_name(here: Path) -> None:
    make("runs/a/same", 0), make("runs/b/same", 0)
    with pytest.raises(Refused, match="several sweeps have this name"):
        find.sweep("same")


@pytest.mark.parametrize(
    ("words", "named", "numbers"),
    [
        ([], None, []),
        (["2"], None, [2]),
        (["0", "2-4"], None, [0, 2, 3, 4]),
        (["1,3", "runs/s"], None, [1, 3]),
        (["runs/s"], None, []),
        (["69_1"], None, [4]),
        (["69_0", "69_1"], None, [3, 4]),
        (["1"], "69", [1]),
    ],
)
def test_numbers_are_trials(words: list[str], named: str | None, numbers: list[int]) -> None:
    sweep = make("runs/s", 0, array=69)
    found, trials = find.trials_and_sweep(words, named)
    assert found.folder == sweep.folder and [trial.number for trial in trials] == numbers


def test_an_element_may_have_several_trials(here: Path) -> None:
    sweep = make("runs/s", 0)
    sweep.record_job("slurm", "70", [1, 2, 4], share=2)
    assert [trial.number for trial in find.trials_and_sweep(["70_0"], None)[1]] == [1, 2]
    assert [trial.number for trial in find.trials_and_sweep(["70_1"], None)[1]] == [4]


@pytest.mark.parametrize("words", [["7"], ["0-9"], ["69_2"], ["runs/s", "runs/t"], ["0-99999999999"]])
def test_what_is_not_there_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    make("runs/t", 100)
    make("runs/s", 0, array=69)
    assert main(["cancel", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and main(["--help"]) == 0 and main(["nonsense"]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS) and max(map(len, out.splitlines())) <= 120
    for name in ("status", "watch", "logs", "cancel", "retry"):
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0 and f"python -m launcher {name}" in capsys.readouterr().out
        with pytest.raises(SystemExit) as left:
            main([name, "--no-such-option"])
        assert left.value.code == 2


def test_nothing_heavy_is_imported() -> None:
    heavy = ["torch", "numpy", "pandas", "hydra", "omegaconf", "submitit", "jinja2", "rich", "yaml", "matplotlib"]
    code = "import sys, launcher.__main__, launcher.commands.status\n"
    code += "import launcher.status.states, launcher.status.local_states\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
