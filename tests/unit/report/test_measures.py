"""A measure is one entry of the registry: everything that compares trials shows a new one."""

from __future__ import annotations

import csv
import io
import json

import pytest

from launcher import __main__ as command
from launcher.report import ending_table, expectations, gather, judge, markdown, measures, page, table_csv
from launcher.report.measure import Measure
from tests.unit import report_sweep
from tests.unit.report_sweep import BETA, VALIDATED

ENTROPY = Measure(
    key="entropy",
    title="top-10 entropy",
    note="Top-10 entropy: made up for this test.",
    form=".2f",
    unit="nats per token",
    better="higher",
    columns=("entropy",),
    each_pair=lambda pairs, beta: pairs["entropy"],
    brief=True,
    glance=True,
    against_beta=True,
)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The evaluation writes a new column, and one entry is registered. Nothing else changes."""
    monkeypatch.setitem(measures.REGISTRY, "entropy", ENTROPY)
    hypotheses = [{"beta": 0.5, "name": "diverse", "claim": "keeps its words", "expect": {"entropy": "highest"}}]
    made = report_sweep.finish(report_sweep.make(tmp_path / "sweep", hypotheses=hypotheses))
    for trial, level in zip(made.trials, (1.0, 2.0, 3.0), strict=True):
        path = trial.folder / "result.json"
        data = json.loads(path.read_text())
        data["evaluation"]["per_pair"]["entropy"] = [level + 0.5 * (place % 2) for place in range(VALIDATED)]
        path.write_text(json.dumps(data))
    return made


@pytest.fixture
def report(sweep):
    return gather.gather(sweep)


def test_in_the_table_after_a_run(sweep):
    heads, titles, first = ending_table.render(sweep).splitlines()[:3]
    assert heads.split()[-1] == "top-10" and titles.split()[-2] == "entropy"
    assert first.split()[-2] == "1.25"


def test_in_markdown(report):
    found = markdown.render(report)
    assert "| top-10 entropy |" in found and "made up for this test" in found
    assert "| 1.250 ± 0.040 |" in found  # 0.25 * sqrt(40 / 39) / sqrt 40


def test_in_the_csv(report):
    rows = list(csv.DictReader(io.StringIO(table_csv.render(report))))
    assert [float(row["entropy"]) for row in rows] == [1.25, 2.25, 3.25]
    assert float(rows[0]["entropy_error"]) == pytest.approx(0.25 / 39**0.5)


def test_on_the_page(report):
    pytest.importorskip("matplotlib")
    html = page.render(report)
    assert '<figure id="entropy-beta"><h3>Top-10 entropy against beta</h3>' in html
    assert "<th>top-10 entropy</th>" in html and "<td>3.250 ± 0.040</td>" in html
    assert "<dt>top-10 entropy, nats per token</dt>" in html


def test_in_a_verdict(report):
    (verdict,) = judge.judge(report).verdicts
    assert verdict.outcome == "supported"
    assert "3.250 ± 0.040 nats per token at beta 0.5" in verdict.findings[0].text


def test_in_export_by(sweep, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["export", "--by", "what", "--best", "--out", str(tmp_path / "x")])
    assert "entropy" in capsys.readouterr().err
    assert judge.best(gather.gather(sweep), "entropy")[0].beta == 0.5


def test_keys_are_the_entries_own():
    assert all(key == measure.key for key, measure in measures.REGISTRY.items())
    assert all(measure.logged for measure in measures.REGISTRY.values() if measure.over_steps)


def test_the_loss_ranks_no_betas(sweep):
    with pytest.raises(ValueError, match="depends on beta itself"):
        judge.best(gather.gather(sweep), "loss")
    assert "cannot rank betas by loss" in expectations.problem({"loss": "lowest"})


def test_the_loss_ranks_trials_of_one_beta(tmp_path):
    made = report_sweep._create(
        tmp_path / "s",
        [([f"{BETA}=0.1", f"model.optim.lr={rate}"], report_sweep.config(0.1)) for rate in (1e-5, 1e-6)],
        [],
    )
    report_sweep.finish(made)
    path = made.trials[1].folder / "result.json"
    data = json.loads(path.read_text())
    data["final"]["val/loss"] = 0.3
    path.write_text(json.dumps(data))
    trial, why = judge.best(gather.gather(made), "loss")
    assert trial.trial.number == 1
    assert why.startswith("best loss of 2 trials: 0.300")
