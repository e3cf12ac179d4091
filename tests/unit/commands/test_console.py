"""dpo-launcher, the one command: dispatch, `sweep`, and what the shell completes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.commands import COMMANDS
from launcher.commands.completion import candidates

ROOT = Path(__file__).resolve().parents[3]
# What pip and uv write for [project.scripts], for a test that runs without an installation.
SCRIPT = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom launcher.__main__ import main\nsys.exit(main())\n"


@pytest.fixture
def dpo_launcher(tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "dpo-launcher"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{SCRIPT}")
    script.chmod(0o755)
    return script


def run(script: Path, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *words], cwd=folder, capture_output=True, text=True, timeout=120)


def write_sweep(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({}))


def test_the_installed_script_is_this_command() -> None:
    assert 'dpo-launcher = "launcher.__main__:main"' in (ROOT / "pyproject.toml").read_text()


def test_every_command_has_a_help(dpo_launcher: Path, tmp_path: Path) -> None:
    listed = run(dpo_launcher, "--help", folder=tmp_path)
    assert listed.returncode == 0
    assert "usage: dpo-launcher COMMAND" in listed.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed.stdout


def test_status_is_no_override(dpo_launcher: Path, tmp_path: Path) -> None:
    result = run(dpo_launcher, "status", folder=tmp_path)
    assert result.returncode == 2
    assert "no sweep under" in result.stderr


def test_the_usage_names_the_program(dpo_launcher: Path, tmp_path: Path) -> None:
    assert "usage: dpo-launcher status" in run(dpo_launcher, "status", "--help", folder=tmp_path).stdout
    module = [sys.executable, "-m", "launcher", "status", "--help"]
    assert "usage: python -m launcher status" in subprocess.run(module, cwd=ROOT, capture_output=True, text=True).stdout


def test_sweep_passes_its_words_to_hydra(dpo_launcher: Path, tmp_path: Path) -> None:
    shown = run(dpo_launcher, "sweep", "--cfg", "job", "cluster=local", "model=tiny", "model.seed=7", folder=tmp_path)
    assert shown.returncode == 0
    assert "seed: 7" in shown.stdout
    refused = run(dpo_launcher, "sweep", "-m", "model.seeed=1", "cluster=local", folder=tmp_path)
    assert refused.returncode == 2
    assert "model.seeed=1: no such key" in refused.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dpo-launcher sta", ["status"]),
        ("dpo-launcher sweep model=ti", ["model=tiny"]),
        ("dpo-launcher sweep -m model.dpo.ref_policy_kl", ["model.dpo.ref_policy_kl_penalty="]),
        ("dpo-launcher sweep --mul", ["--multirun"]),
        ("dpo-launcher status --js", ["--json"]),
        ("dpo-launcher status la", ["last"]),
        ("dpo-launcher status runs/", ["runs/tune/1"]),
        ("dpo-launcher render con", ["convert_checkpoint"]),
        ("dpo-launcher render sweep data=sa", ["data=sample"]),
        ("dpo-launcher completion ", ["bash", "fish", "zsh"]),
        ("dpo-launcher nonsense x", []),
    ],
)
def test_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str]) -> None:
    write_sweep(tmp_path / "runs" / "tune" / "1")
    monkeypatch.chdir(tmp_path)
    _, *before, last = line.split(" ")
    assert candidates(before, last) == expected


@pytest.mark.parametrize(
    ("line", "words", "expected"),
    [
        ("dpo-launcher sweep mod", ["dpo-launcher", "sweep", "mod"], ["model=", "model.seed="]),
        ("dpo-launcher sweep model=ti", ["dpo-launcher", "sweep", "model", "=", "ti"], ["tiny"]),
        ("dpo-launcher sta", ["dpo-launcher", "sta"], ["status"]),
    ],
)
def test_bash_completes(dpo_launcher: Path, tmp_path: Path, line: str, words: list[str], expected: list[str]) -> None:
    script = (
        'eval "$(dpo-launcher completion bash)"\n'
        "compopt() { :; }\n"  # which works only while a line is edited
        f"COMP_LINE={line!r}; COMP_POINT={len(line)}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_dpo_launcher; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = {**os.environ, "PATH": f"{dpo_launcher.parent}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert set(expected) <= set(result.stdout.split())
    assert result.stderr == ""


@pytest.mark.parametrize("script", ["launcher/main.py", "data_prep/prepare_data.py", "data_prep/convert_checkpoint.py"])
def test_a_script_imports_nothing_from_its_own_folder(script: str, tmp_path: Path) -> None:
    """Python puts that folder first, and in it are packages with common names: `models`, `pairs`, `report`."""
    (tmp_path / "sitecustomize.py").write_text("import atexit, sys\natexit.register(lambda: print(sys.path))\n")
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    (path,) = (line for line in done.stdout.splitlines() if line.startswith("["))
    assert repr(str(ROOT)) in path and repr(str((ROOT / script).parent)) not in path
