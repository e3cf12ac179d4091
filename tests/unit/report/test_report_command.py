"""python -m launcher report: files and their contents, refusals, exit codes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time

import pytest

from launcher import __main__ as command
from launcher.report import gather, page
from tests.unit import report_sweep
from tests.unit.report_sweep import BETA, make

pytest.importorskip("matplotlib")


@pytest.fixture
def sweep(tmp_path):
    return report_sweep.finish(make(tmp_path / "sweep"))


def report(*words) -> int:
    return command.main(["report", *map(str, words)])


def test_writes_all_formats_into_the_sweep(sweep, capsys):
    assert report(sweep.folder) == 0
    folder = sweep.folder / "report"
    said = capsys.readouterr()
    assert said.out.split() == [str(folder / f"report.{form}") for form in ("html", "md", "csv", "png")]
    assert said.err == ""
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [f"report.{form}" for form in ("csv", "html", "md", "png")]


def test_writes_what_is_asked_for_where_it_is_asked_for(sweep, tmp_path):
    assert report(sweep.folder, "--out", tmp_path / "a" / "b", "--format", "csv, md") == 0
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["report.csv", "report.md"]
    assert "report.png" not in (tmp_path / "a" / "b" / "report.md").read_text()


def test_a_partial_sweep_gets_a_report_that_says_so(tmp_path, capsys):
    sweep = make(tmp_path / "sweep")
    report_sweep.finish(sweep, 0)
    report_sweep.write_lines(sweep, 1, report_sweep.lines(0.1)[:5], end='\n{"time": 17')
    assert report(sweep.folder) == 0
    assert "2 of 3 trials have no result" in capsys.readouterr().err
    html = (sweep.folder / "report" / "report.html").read_text()
    assert "Partial: 2 of 3 trials have no result" in html
    assert "step 10/20" in html


def test_a_sweep_that_never_started_gets_one_too(tmp_path):
    sweep = make(tmp_path / "sweep")
    assert report(sweep.folder) == 0
    assert "Nothing to plot" in (sweep.folder / "report" / "report.html").read_text()


def test_page_asks_nobody_for_anything_and_escapes_what_models_write(sweep):
    html = page.render(gather.gather(sweep))
    assert "Hey\N{REPLACEMENT CHARACTER}&lt;script&gt; …" in html
    assert "<script" not in html
    assert "&lt;b&gt;Hi&lt;/b&gt;" in html
    assert "Hello from 0.05<" in html  # which ended, so no dots
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'\s<)]+", html)) <= allowed
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    referred = {*re.findall(r'href="#([^"]+)"', html), *re.findall(r"url\(#([^)]+)\)", html)}
    assert referred <= set(ids)


def test_page_has_every_plot_and_the_figures(sweep):
    html = page.render(gather.gather(sweep))
    figures = re.findall(r'<figure id="([^"]+)">', html)
    assert figures == ["accuracy-beta", "drift-beta", "kl-beta", "frontier", "loss-steps", "accuracy-steps",
                       "margin-steps", "drift-steps"]  # fmt: skip
    for text in (
        '0.1000</b> <small class="soft">± 0.0045',
        "3.000 ± 0.20",
        "3 GPU-hours in all",
        "+1.500 ± 0.098 (15.2 standard",
    ):
        assert text in html


def test_many_trials(tmp_path):
    """Other overrides than beta, and more trials than have a place in the cards."""
    sweep = make(tmp_path / "sweep", betas=(0.05, 0.1, 0.5) * 10, hypotheses=[])
    report_sweep.finish(sweep)
    html = page.render(gather.gather(sweep))
    assert 'class="card"' not in html
    assert html.count("<tr><td><span") == 30


def test_the_time_grows_with_the_trials_and_no_faster(tmp_path):
    """1,000 trials take a second or two; where each looks at all the others, minutes."""
    trials = [
        ([f"{BETA}={beta}", f"model.optim.lr={rate}"], report_sweep.config(beta))
        for rate in range(334)
        for beta in (0.05, 0.1, 0.5)
    ]
    made = report_sweep.finish(report_sweep._create(tmp_path / "sweep", trials, None))
    before = time.process_time()
    assert report(made.folder, "--format", "md,csv") == 0
    assert time.process_time() - before < 15


def test_refusals_leave_nothing(sweep, tmp_path, capsys):
    assert report(sweep.folder, "--format", "pdf") == 2
    assert "--format=pdf: is not a list of formats" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert report(sweep.folder, "--out", tmp_path / "file") == 2
    assert "choose another folder with --out" in capsys.readouterr().err
    assert not (sweep.folder / "report").exists()


def test_without_matplotlib_text_is_still_written(sweep, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(sweep.folder, "--format", "html,md") == 2
    assert "--format md,csv" in capsys.readouterr().err
    assert not (sweep.folder / "report").exists()
    assert report(sweep.folder) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert {path.name for path in (sweep.folder / "report").iterdir()} == {"report.md", "report.csv"}


def test_text_needs_no_matplotlib_and_no_torch(sweep):
    script = (
        "import sys; from launcher.__main__ import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'nemo', 'matplotlib', 'pandas'} & set(sys.modules); sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, "report", str(sweep.folder), "--format", "md,csv"])
    assert done.returncode == 0


def test_evaluate_runs_what_is_done_and_not_yet_evaluated(tmp_path, monkeypatch, capsys):
    from launcher.commands import report as module

    sweep = make(tmp_path / "sweep")
    report_sweep.finish(sweep, 0)
    report_sweep.finish(sweep, 1, evaluated=False)
    asked = []

    def failing(words, check):
        asked.append(words)
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(module.subprocess, "run", failing)
    assert report(sweep.folder, "--evaluate", "--format", "md") == 1
    assert asked == [[sys.executable, "-m", "launcher.train.nemo_aligner.evaluate", str(sweep.folder / "1")]]
    said = capsys.readouterr()
    assert "trial 1 (beta 0.1) could not be evaluated" in said.err
    assert "evaluating trial 1 (beta 0.1), 1 of 1" in said.out
