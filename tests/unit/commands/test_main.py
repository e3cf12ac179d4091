"""The command line as a user meets it: one process a case, exit codes, one line a finding, no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launcher" / "main.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_help(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    assert "-m model.dpo.ref_policy_kl_penalty=0.05,0.1,0.5" in result.stdout
    assert "model: llama3_8b, smollm2_135m, tiny" in result.stdout


def test_cfg_job(tmp_path: Path) -> None:
    result = run(tmp_path, "--cfg", "job", "cluster=local", "model=tiny", "model.seed=7")
    assert result.returncode == 0
    assert "seed: 7" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=tinny"], ["model=tinny: no such model; did you mean tiny?"]),
        (["model.dpo.ref_policy_kl_penalty=0.1,0.2"], ["add -m"]),
        (["-m", "model.dpo.ref_policy_kl_penalty=0,0.1"], ["ref_policy_kl_penalty=0: must be a finite number above 0"]),
        (["-m", "model.dpo.ref_policy_kl_penalty=0.1,-2"], ["ref_policy_kl_penalty=-2"]),
        (["model.dpo.ref_policy_kl_penalty=nan"], ["ref_policy_kl_penalty=nan"]),
        (["model.dpo.ref_policy_kl_penalty=high"], ["ref_policy_kl_penalty='high'"]),
        (["model.seeed=1", "trainer.devices=x"], ["model.seeed=1: no such key", "trainer.devices='x'"]),
        (["model.seed"], ["model.seed: cannot be read"]),
        (["model=tiny"], ["models/tiny.nemo: no such file", "data/sample/train.jsonl: no such file"]),
    ],
)
def test_refused(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    result = run(tmp_path, *words, "cluster=local")
    assert result.returncode == 2, result.stderr
    for text in expected:
        assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert "nothing was started" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["-m", "model.dpo.ref_policy_kl_penalty=0"]])
def test_no_torch_on_the_login_node(tmp_path: Path, words: list[str]) -> None:
    heavy = {"torch", "nemo", "numpy"} | ({"pydantic"} if "-m" not in words else set())
    script = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY' if {heavy!r} & set(sys.modules) else 'LIGHT'))\n"
        f"sys.argv = ['main.py', *{words!r}, 'cluster=local']\n"
        "from launcher.main import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "LIGHT" in result.stdout, result.stderr


def test_ctrl_c_after_the_folder_is_written_names_it(tmp_path, monkeypatch, capsys) -> None:
    from launcher import main
    from launcher.compose import hydra_state

    def interrupted() -> None:
        hydra_state.folder = tmp_path / "a sweep"
        raise KeyboardInterrupt

    monkeypatch.setattr("hydra.main", lambda **_: lambda _: interrupted)
    monkeypatch.setattr(hydra_state, "folder", None)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert main.main(["cluster=local"]) == 130
    said = capsys.readouterr().err
    assert "nothing was started" not in said and f"status '{tmp_path / 'a sweep'}'" in said
