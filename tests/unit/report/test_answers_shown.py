"""The report's plots and pages about what policies say: frontiers, answers side by side with their checks."""

from __future__ import annotations

import json

import pytest

from launcher.report import compared_answers, gather, markdown
from launcher.sweep.folder import Sweep
from tests.unit.evaluate import simulated
from tests.unit.evaluate.simulated import SOUND

pytest.importorskip("matplotlib")

from launcher.report import page, plots


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Three policies whose answers are stored as `evaluate` stores them."""
    made = simulated.sweep(tmp_path / "sweep", {0.05: SOUND, 0.1: SOUND, 0.5: SOUND}, {})
    for trial in made.trials:
        folder = trial.folder / "evaluation"
        answers = simulated.answers(SOUND, trial.number)
        (folder / "answers.jsonl").write_text("".join(it.line() + "\n" for it in answers) + '{"prompt_id": "cut')
        (folder / "reference.jsonl").write_text("".join(it.line() + "\n" for it in simulated.answers(SOUND, 99)))
        scores = json.loads((folder / "scores.json").read_text())
        checked = next(it for it in answers if it.instructions)
        scores["checks"] = {checked.prompt_id: [["keywords:existence", True], ["<b>:words", False], ["damaged"]]}
        (folder / "scores.json").write_text(json.dumps(scores))
    return made


def test_the_frontiers(sweep):
    drawn = {panel.key: svg for panel, svg in plots.svgs(gather.gather(sweep))}
    assert {"frontier", "win-frontier", "following-frontier", "diversity-frontier", "length-frontier"} <= drawn.keys()
    assert "KL on own answers, nats" in drawn["win-frontier"]


def test_answers_to_one_prompt_side_by_side(sweep):
    found = compared_answers.compared(gather.gather(sweep))
    assert len(found) == 8
    names = [answer.name for answer in found[0].answers]
    assert names[-4:] == ["reference", "beta 0.05", "beta 0.1", "beta 0.5"]
    assert found[0].answers[-1].checks == (("keywords:existence", True), ("<b>:words", False))


def test_on_the_page(sweep):
    html = page.render(gather.gather(sweep))
    assert "✓ keywords:existence; ✗ &lt;b&gt;:words" in html and "<b>:words" not in html
    assert "<summary>What others found at which beta</summary>" in html and "Llama 3" in html


def test_in_markdown(sweep):
    assert "What others found at which beta" in markdown.render(gather.gather(sweep))


def test_without_answers_the_samples_of_the_training_are_shown(sweep):
    for trial in sweep.trials:
        (trial.folder / "evaluation" / "scores.json").unlink()
    report = gather.gather(sweep)
    assert compared_answers.compared(report) == []
    assert "What the policies write" in page.render(report)


def test_a_linked_file_is_not_read(sweep, tmp_path):
    file = sweep.trials[0].folder / "evaluation" / "answers.jsonl"
    file.unlink()
    (tmp_path / "secret").write_text('{"prompt_id": "a", "prompt": "secret", "greedy": "secret"}\n')
    file.symlink_to(tmp_path / "secret")
    html = page.render(gather.gather(sweep))
    assert "secret" not in html
