"""Standard suites: how lm-eval is called, and what is kept of its results. A program in its place writes its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launcher.evaluate import suites
from launcher.findings import LauncherError, Refused

MADE_WITH = {"base": "b", "policy": "p", "device": "cpu torch.float32"}
#: As lm-eval 0.4.13 writes results_TIME.json.
RESULTS = {
    "results": {
        "ifeval": {
            "alias": "ifeval",
            "prompt_level_strict_acc,none": 0.25,
            "prompt_level_strict_acc_stderr,none": 0.02,
        },
        "gsm8k": {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": "N/A", "exact_match,flexible": 1},
    }
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Writes its words beside itself, and results where lm-eval puts them. It fails if a file `broken` is there."""
    path = tmp_path / "lm_eval"
    path.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if (here / "broken").exists():
    sys.exit("ValueError: Tasks not found: ifevil")
out = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "some__model"
out.mkdir(parents=True)
(out / "results_2026-11-26T10-00-00.json").write_text({json.dumps(json.dumps(RESULTS))})
"""
    )
    path.chmod(0o755)
    return path


def calls(program: Path) -> list[list[str]]:
    return [json.loads(line) for line in (program.parent / "calls").read_text().splitlines()]


def test_a_policy_is_run_once_for_each_task(program: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "adapter_config.json").touch()
    asked = suites.Suites.of("ifeval, gsm8k,ifeval", str(program))
    lines: list[str] = []
    folder = tmp_path / "evaluation"
    for _ in range(2):
        found = asked.results(folder, tmp_path / "base", tmp_path / "policy", MADE_WITH, lines.append)
        assert found["ifeval"] == {"prompt_level_strict_acc": [0.25, 0.02]}
        assert found["gsm8k"] == {"exact_match (strict-match)": [0.5, None], "exact_match (flexible)": [1.0, None]}
    (words,) = calls(program)
    assert words[words.index("--model_args") + 1] == f"pretrained={tmp_path}/base,dtype=float32,peft={tmp_path}/policy"
    assert words[words.index("--tasks") + 1] == "ifeval,gsm8k"
    assert len(lines) == 1 and not (folder / ".lm_eval").exists()
    asked.results(folder, tmp_path / "base", tmp_path / "policy", {**MADE_WITH, "policy": "other"}, lines.append)
    assert len(calls(program)) == 2, "another policy's results are not taken"


def test_a_policy_without_adapter_is_the_model(program: Path, tmp_path: Path) -> None:
    asked = suites.Suites.of("ifeval", str(program))
    asked.results(tmp_path / "a", tmp_path / "base", None, MADE_WITH, print)
    asked.results(tmp_path / "b", tmp_path / "base", tmp_path / "whole", MADE_WITH, print)
    models = [words[words.index("--model_args") + 1] for words in calls(program)]
    assert models == [f"pretrained={tmp_path}/base,dtype=float32", f"pretrained={tmp_path}/whole,dtype=float32"]


def test_an_error_has_lm_evals_own_line(program: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(LauncherError, match="exit code 1: ValueError: Tasks not found: ifevil .*lm_eval.log"):
        suites.Suites.of("ifevil", str(program)).results(tmp_path / "e", tmp_path, None, MADE_WITH, print)
    assert not (tmp_path / "e" / "suites.json").exists()


def test_without_lm_eval_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Refused, match="--lm-eval"):
        suites.Suites.of("ifeval", None)


def test_the_table_has_a_column_a_policy() -> None:
    first, *lines = suites.table({"reference": {"a": {"acc": [0.5, 0.1]}}, "trial 0": {}}).splitlines()
    assert first.split() == ["reference", "trial", "0"]
    assert lines[0].split() == ["a:", "acc", "0.5000", "±", "0.1000", "-"]
