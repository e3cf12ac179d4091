"""The sweep's folder when several commands choose the same one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from launcher.compose import hydra_state
from launcher.submit import prepare
from launcher.sweep.folder import FolderTaken, Sweep


def launcher(folder: Path) -> Any:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    OmegaConf.set_readonly(config.hydra, True)
    return SimpleNamespace(config=config, sweep=None)


def trials() -> Any:
    experiment = SimpleNamespace(name="x", hypotheses=[])
    config = SimpleNamespace(plain={"experiment": {"name": "x"}}, experiment=experiment)
    return [SimpleNamespace(overrides=["a=1"], config=config)]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_state, "folder", None)
    monkeypatch.setattr(hydra_state, "names_folder", False)


def test_sweeps_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    launchers = [launcher(tmp_path / "2026-11-26_15-00-00") for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        sweeps = [sweep for sweep, _ in threads.map(lambda one: prepare.written(one, trials()), launchers)]
    assert len({sweep.folder for sweep in sweeps}) == 6
    assert {sweep.folder.name for sweep in sweeps} <= {"2026-11-26_15-00-00"} | {
        f"2026-11-26_15-00-00_{number}" for number in range(2, 12)
    }
    assert len({Sweep.load(sweep.folder).data["id"] for sweep in sweeps}) == 6, "none is mixed with another"
    assert [one.config.hydra.sweep.dir for one in launchers] == [str(sweep.folder) for sweep in sweeps]


def test_a_folder_that_the_user_named_is_never_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra_state, "names_folder", True)
    prepare.written(launcher(tmp_path / "mine"), trials())
    with pytest.raises(FolderTaken):
        prepare.written(launcher(tmp_path / "mine"), trials())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
