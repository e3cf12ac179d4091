"""The report of a sweep that somebody else may have made: no link is followed, no secret shown, no name breaks it."""

from __future__ import annotations

import json
import os
import stat

import pytest

from launcher import __main__ as command
from launcher.findings import Refused
from launcher.report import gather, markdown, table_csv, text, trial_files
from tests.unit import report_sweep
from tests.unit.report_sweep import BETA, make

SECRET = "hf_SECRET1234567890abcdef"


def report(*words) -> int:
    return command.main(["report", *map(str, words)])


@pytest.fixture
def sweep(tmp_path):
    return report_sweep.finish(make(tmp_path / "sweep"))


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.jsonl"])
def test_a_link_out_of_the_sweep_is_not_followed(sweep, tmp_path, name):
    private = tmp_path / "private.yaml"
    private.write_text(f'{{"github": {{"oauth_token": "{SECRET}", "user": "me-alone"}}}}\n')
    path = sweep.folder / "0" / name
    path.unlink()
    path.symlink_to(private)
    found = gather.gather(sweep)
    assert "me-alone" not in markdown.render(found) + table_csv.render(found)
    assert any(f"0/{name}" in warning and "link" in warning for warning in text.warnings(found))


def test_a_trial_folder_that_is_a_link_is_not_read(sweep, tmp_path):
    os.rename(sweep.folder / "0", tmp_path / "elsewhere")
    (sweep.folder / "0").symlink_to(tmp_path / "elsewhere")
    found = gather.gather(sweep)
    assert not found.trials[0].done and found.trials[1].done
    assert any("link" in warning for warning in text.warnings(found))


@pytest.mark.parametrize("make_odd", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["config.yaml", "result.json", "metrics.jsonl"])
def test_a_pipe_does_not_hang_and_a_folder_is_not_read(sweep, name, make_odd):
    (sweep.folder / "0" / name).unlink()
    make_odd(sweep.folder / "0" / name)
    assert any("not a plain file" in warning for warning in text.warnings(gather.gather(sweep)))


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\n",
        "model:\n  a: &a\n    b: *a\n",
        "model: &m {a: 1}\nother:\n  <<: *m\n",
        "model: [\n",
        "model:\n  x: " + "[" * 5000 + "\n",
        "\xff",
    ],
)
def test_a_config_that_the_launcher_did_not_write_is_no_end(sweep, content):
    (sweep.folder / "0" / "config.yaml").write_bytes(content.encode("latin-1"))
    found = gather.gather(sweep)
    assert found.trials[0].config == {}
    assert any("0/config.yaml cannot be read" in warning for warning in text.warnings(found))
    assert "## Cost" in markdown.render(found)


def test_secrets_stand_in_no_form_of_the_report(tmp_path):
    pytest.importorskip("matplotlib")
    words = [f"+cluster.environment.HF_TOKEN={SECRET}", f"+exp_manager.wandb_logger_kwargs.api_key={SECRET}"]
    trials = []
    for number, beta in enumerate((0.05, 0.5)):
        config = report_sweep.config(beta)
        config["cluster"] = {"environment": {"HF_TOKEN": f"{SECRET}{number}"}}
        config["model"]["data"] = {"api_key": f"{SECRET}{number}"}
        trials.append(([f"{BETA}={beta}", *(f"{word}{number}" for word in words)], config))
    made = report_sweep._create(tmp_path / "sweep", trials, None)
    data = json.loads((made.folder / "sweep.json").read_text())
    data["command"] += words
    (made.folder / "sweep.json").write_text(json.dumps(data))
    report_sweep.finish(made)
    assert report(made.folder) == 0
    for form in ("html", "md", "csv"):
        content = (made.folder / "report" / f"report.{form}").read_text()
        assert SECRET not in content and "***" in content.replace("\\", "")


@pytest.mark.parametrize("name", ["cost $a_$", "$x_{ $", "a$b", "_x"])
def test_dollars_in_names_are_no_formulas(tmp_path, name):
    pytest.importorskip("matplotlib")
    made = report_sweep._create(
        tmp_path / "sweep",
        [
            ([f"{BETA}={beta}", f"cluster.setup=['export A=$HOME/x_{{ B=$PWD {beta}']"], report_sweep.config(beta))
            for beta in (0.1, 0.5)
        ],
        None,
    )
    made.data["experiment"]["name"] = name
    (made.folder / "sweep.json").write_text(json.dumps(made.data))
    report_sweep.finish(made)
    assert report(made.folder) == 0


def test_markup_in_names_is_shown_as_it_is(tmp_path):
    hypotheses = [{"beta": 0.5, "name": "<img src=x>", "claim": "**bold** [a](b)", "expect": {"drift": "lowest"}}]
    found = markdown.render(gather.gather(report_sweep.finish(make(tmp_path / "s", hypotheses=hypotheses))))
    assert "\\<img src=x>" in found and "\\*\\*bold\\*\\* \\[a\\](b)" in found


def test_somebody_elses_sweep_is_reported_where_the_user_says(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert report(sweep.folder, "--format", "md") == 2
    assert "--out" in capsys.readouterr().err and not (sweep.folder / "report").exists()
    assert report(sweep.folder, "--format", "md", "--out", tmp_path / "mine") == 0
    assert report(sweep.folder, "--format", "md", "--out", tmp_path / "mine", "--evaluate") == 2
    assert "belongs to somebody else" in capsys.readouterr().err


def test_a_link_in_the_reports_place_is_not_written_through(sweep, tmp_path, capsys):
    (tmp_path / "target").mkdir()
    (sweep.folder / "report").symlink_to(tmp_path / "target")
    assert report(sweep.folder, "--format", "md") == 2
    assert "is a link" in capsys.readouterr().err and list((tmp_path / "target").iterdir()) == []


def test_a_link_at_the_reports_file_is_replaced(sweep, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (sweep.folder / "report").mkdir()
    (sweep.folder / "report" / "report.md").symlink_to(tmp_path / "precious")
    assert report(sweep.folder, "--format", "md") == 0
    assert (tmp_path / "precious").read_text() == "mine"
    assert stat.S_ISREG((sweep.folder / "report" / "report.md").lstat().st_mode)


def test_equal_sections_are_parsed_once(tmp_path):
    """5,000 trials have 5,000 configs, nearly all of whose lines are the same."""
    made = make(tmp_path / "s")
    configs = [trial_files.read_config(trial) for trial in made.trials]
    assert configs[0] == made.trials[0].config()
    assert configs[0]["trainer"] is configs[1]["trainer"] and configs[0]["model"] is not configs[1]["model"]


@pytest.mark.parametrize(
    "content",
    [
        "a:\n  b:\n    c: 1\n    d: [1, 2]\n  e: x\nf: 2.5\n",
        "a:\n- 1\n- b: 2\n",
        "a:\n  - 1\n  - 2\n",
        "a:\n  b: |\n    x: 1\n    y\n  c: >-\n    one\n    two\n",
        "# head\na:\n  # inside\n  b: 1 # behind\n\n  c: 2\n",
        "a:\n  plain text\n  on two lines\nb:\n",
        "a:\n  'quoted: key': {x: 1}\n  1: one\n",
        "a: {}\nb: []\nc: null\n",
        "a:\n    deep: 1\n    more:\n        x: 1\n",
        "",
    ],
)
def test_configs_are_read_as_yaml_reads_them(sweep, content):
    import yaml

    (sweep.folder / "0" / "config.yaml").write_text(content)
    expected = {name: it if isinstance(it, dict) else {"": it} for name, it in (yaml.safe_load(content) or {}).items()}
    found = trial_files.read_config(sweep.trials[0])
    assert json.dumps(found) == json.dumps(expected)


def test_refused_is_what_the_command_raises(sweep, monkeypatch):
    from launcher.commands import report as module

    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Refused):
        module.folder(sweep, None)
