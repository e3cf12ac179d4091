"""What the words after launcher/main.py become, and what is refused before Hydra reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.compose import command_line
from launcher.compose.config_files import config_root
from launcher.findings import Finding, Refused

ROOT = Path(__file__).resolve().parents[3]


def prepared(*words: str) -> command_line.CommandLine:
    return command_line.prepare(["cluster=local", *words], config_root())


def refused(*words: str) -> Finding:
    with pytest.raises(Refused) as caught:
        prepared("-m", *words)
    (finding,) = caught.value.findings
    return finding


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_key_may_have_a_plus_or_two_as_in_nvidias_command_line(plus: str) -> None:
    line = prepared(f"{plus}model.micro_batch_size=1")
    assert "++model.micro_batch_size=1" in line.argv
    assert line.forced == (frozenset({"model.micro_batch_size"}) if plus else frozenset())


def test_two_pluses_before_a_group() -> None:
    assert "model=tiny" in prepared("++model=tiny").argv


def test_a_sweep_over_config_files() -> None:
    assert "model=tiny,smollm2_135m" in prepared("-m", "model=tiny,smollm2_135m").argv
    assert "model=glob(*)" in prepared("-m", "model=glob(*)").argv
    wrong = refused("model=tiny,smollm2_135x")
    assert (wrong.where, wrong.value) == ("model", "smollm2_135x") and "smollm2_135m" in wrong.remedy


@pytest.mark.parametrize("word", ["cluster.mail_type=END,FAIL", "++cluster.exclude=node1,node2"])
def test_a_comma_in_a_key_of_the_cluster_is_no_sweep_by_accident(word: str) -> None:
    """Every beta twice, in two arrays."""
    finding = refused(word, "model.dpo.ref_policy_kl_penalty=0.1,0.5")
    key, _, value = word.lstrip("+").partition("=")
    assert (finding.where, finding.value) == (key, value)
    one_value, sweep = f'{key}="{value}"', f"{key}=choice({value})"
    assert f"'{one_value}'" in finding.remedy and f"'{sweep}'" in finding.remedy
    assert f"++{one_value}" in prepared("-m", one_value).argv
    assert f"++{sweep}" in prepared("-m", sweep).argv


@pytest.mark.parametrize("value", ["basic", "submitit_slurm", "submitit_local", "preference_local,basic"])
def test_hydras_own_launchers_train_nothing(value: str) -> None:
    finding = refused(f"hydra/launcher={value}")
    assert finding.where == "hydra/launcher" and "cluster=slurm" in finding.remedy


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_options_of_hydras_own_launchers_are_not_ignored(plus: str) -> None:
    finding = refused(f"{plus}hydra.launcher.partition=short")
    assert finding.where == "hydra.launcher.partition" and "cluster.partition=short" in finding.remedy


def test_the_names_of_trials_folders_are_fixed() -> None:
    assert refused("hydra.sweep.subdir=x").where == "hydra.sweep.subdir"


@pytest.mark.parametrize(
    "words", [("--hydra-help",), ("--hydra-help", "cluster=local", "model.seed=1"), ("--info", "all")]
)
def test_hydras_own_options_answer(words: tuple[str, ...]) -> None:
    """Hydra composes its own config for --hydra-help, in which no key of the launcher exists."""
    answer = subprocess.run([sys.executable, "launcher/main.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0 and "error:" not in answer.stderr, answer.stderr
    assert "hydra" in answer.stdout.lower()


def test_completion_is_the_launchers_own() -> None:
    assert "dpo-launcher completion" in refused("--shell-completion", "install=bash").remedy


def test_a_config_is_shown_for_one_value_of_each_key() -> None:
    assert refused("--cfg", "job").where == "-m"


@pytest.mark.parametrize(
    ("word", "named"), [("hydra.sweep.dir=/x", True), ("hydra.run.dir=/x", True), ("model=tiny", False)]
)
def test_who_named_the_folder(word: str, named: bool) -> None:
    assert prepared(word).names_folder is named


def test_what_hydra_itself_offers_is_left_alone(tmp_path: Path) -> None:
    line = prepared("-m", "hydra/sweeper=optuna", "hydra/launcher=preference_slurm", "~model.seed")
    assert {"hydra/sweeper=optuna", "hydra/launcher=preference_slurm", "~model.seed"} <= set(line.argv)


@pytest.mark.parametrize("line", ["time: 4:00:00", "time: 90:00 # minutes", "{a: 1, time: 4:00:00}", "- 1:30"])
def test_a_time_that_yaml_reads_as_a_number(tmp_path: Path, line: str) -> None:
    """14400, which as minutes are ten days."""
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "site.yaml").write_text(f"# a site\n{line}\n")
    finding = refused("--config-dir", str(tmp_path), "cluster=site")
    assert finding.where == f"{tmp_path}/cluster/site.yaml:2" and f'"{finding.value}"' in finding.remedy
    assert finding.value in line and ":" in finding.value


@pytest.mark.parametrize("line", ['time: "4:00:00"', "time: 1-04:00:00", "at: 2026-11-26 15:00:00", "a: 1:", "x: a:1"])
def test_other_colons_are_left_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "site.yaml").write_text(f"{line}\n")
    assert prepared("--config-dir", str(tmp_path)).argv
