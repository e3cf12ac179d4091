"""A whole, valid trial config and the files it names: what unit tests break one thing at a time."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import launcher.compose.hydra_app  # noqa: F401  so that Hydra finds the launcher's plugins, whichever test runs first
from launcher.compose.config_files import config_root
from launcher.compose.resolvers import register_resolvers
from launcher.compose.trials import ComposedConfig, UnresolvedError, checked, unresolved
from launcher.dotted_keys import at
from launcher.findings import Finding, Refused
from launcher.trial_config.config import TrialConfig
from launcher.trial_config.validate import validate
from tests.unit.prepare_tools import Prepare, Refusal


@pytest.fixture(scope="session")
def composed() -> Any:
    """compose(*overrides) -> (config, findings) as launcher/main.py would have them, without running anything."""
    register_resolvers()

    def build(*overrides: str) -> tuple[TrialConfig | None, list[Finding]]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(config_root()), version_base="1.3"):
            made = ComposedConfig(compose("config", overrides=["cluster=local", *overrides]))
        try:
            return checked(made.with_values({})), []
        except Refused as refused:
            return None, refused.findings
        except UnresolvedError as error:
            return None, unresolved(error, frozenset())

    return build


def changed(config: TrialConfig, changes: dict[str, Any], added: frozenset[str] = frozenset()) -> TrialConfig:
    """The config with other values at dotted keys. Raises Refused."""
    made = copy.deepcopy(config.plain)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (at(made, section) if section else made)[name] = value
    return validate(made, added)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in: models/tiny.nemo (the parts that are looked at), data/sample of 16, 8 and 8 rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    write_nemo(tmp_path / "models" / "tiny.nemo")
    folder = tmp_path / "data" / "sample"
    folder.mkdir(parents=True)
    for split, rows in (("train", 16), ("validation", 8), ("test", 8)):
        (folder / f"{split}.jsonl").write_text("".join(row(i) for i in range(rows)))
    return tmp_path


def row(number: int, **changes: Any) -> str:
    pair = {"prompt": f"Human: {number}?\n\nAssistant:", "chosen_response": " yes", "rejected_response": " no"}
    return json.dumps({**pair, "chosen_reward": 1.0, "rejected_reward": 0.0, **changes}) + "\n"


def write_nemo(path: Path, names: tuple[str, ...] = ("model_config.yaml", "model_weights/metadata.json")) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(f"./{name}")
            member.size = 5000
            archive.addfile(member, io.BytesIO(b"x" * 5000))


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """prepare_data.py, called with rows and options."""
    return Prepare(tmp_path)


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """prepare_data.py, called with what it refuses; its one line."""
    return Refusal(tmp_path, capsys)
