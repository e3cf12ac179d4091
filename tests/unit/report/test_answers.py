"""What the policies say, from evaluation/scores.json, in every form of the report."""

from __future__ import annotations

import csv
import io
import json
import os

import pytest

from launcher import __main__ as command
from launcher import estimates
from launcher.report import (
    beside,
    ending_table,
    gather,
    judge,
    markdown,
    measures,
    over_optimisation,
    page,
    panels,
    recorded_scores,
    table_csv,
)
from launcher.report import text as report_text
from launcher.report.pools import difference
from tests.unit import report_sweep

PROMPTS = 20
FACTS = {"held_out_accuracy": 0.7, "held_out_accuracy_error": 0.02}
IDS = [f"heldout-{number}" for number in range(PROMPTS)]


def content(level: float) -> dict[str, object]:
    """Means: length ratio 2 x level, repeated = level, 15 of 20 prompts with instructions, win rate 0.5 + level / 4."""
    asked = [number < 15 for number in range(PROMPTS)]
    return {
        "format": 1,
        "prompt_ids": IDS,
        "per_prompt": {
            "length": [20 * level + number % 2 for number in range(PROMPTS)],
            "reference_length": [10.0 + number % 2 for number in range(PROMPTS)],
            "repeated": [level + 0.1 * (number % 2) for number in range(PROMPTS)],
            "instructions": [2 if it else None for it in asked],
            "followed": [number % 3 if it else None for number, it in enumerate(asked)],
            "win": [0.5 + level / 4 + 0.1 * (number % 2) for number in range(PROMPTS)],
        },
        "per_pair": {"entropy_top10": [level, level + 0.2], "tokens_chosen": [4, 5]},
        "judges": {
            "reference": {"name": "probe", "facts": {"held_out_accuracy": 0.7, "held_out_accuracy_error": 0.02}}
        },
    }


def write(trial, data, checkpoint: str = "") -> None:
    folder = trial.folder / "evaluation" / checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(data))


@pytest.fixture
def sweep(tmp_path):
    hypotheses = [{"beta": 0.05, "name": "rambles", "claim": "", "expect": {"repeated": "highest", "kl_own": "lowest"}}]
    made = report_sweep.finish(report_sweep.make(tmp_path / "sweep", hypotheses=hypotheses))
    for trial, level in zip(made.trials, (0.4, 0.3, 0.2), strict=True):
        write(trial, content(level))
    return made


def test_estimates_are_over_prompts(sweep):
    trial = gather.gather(sweep).trials[0]
    repeated = trial.estimates["repeated"]
    assert (repeated.value, repeated.pairs, repeated.counted) == (pytest.approx(0.45), PROMPTS, "prompts")
    assert repeated.error == pytest.approx(0.05 / 19**0.5)
    assert trial.estimates["length_ratio"].value == pytest.approx(170 / 210)
    following = trial.estimates["following"]
    assert (following.value, following.pairs) == (pytest.approx(0.5), 15)
    assert trial.estimates["entropy"].value == pytest.approx(0.5) and trial.estimates["entropy"].counted == "pairs"
    assert "kl_own" not in trial.estimates


def test_trials_are_compared_prompt_by_prompt(sweep):
    pools = gather.gather(sweep).pools
    apart = difference(measures.REGISTRY["repeated"], pools[0], pools[1])
    assert (apart.value, apart.paired, apart.counted) == (pytest.approx(0.1), True, "prompts")
    assert apart.error == pytest.approx(0, abs=1e-12)


def test_other_prompts_are_not_paired(sweep):
    data = content(0.3)
    data["prompt_ids"] = ["another", *IDS[1:]]
    write(sweep.trials[1], data)
    pools = gather.gather(sweep).pools
    apart = difference(measures.REGISTRY["repeated"], pools[0], pools[1])
    assert not apart.paired and apart.error > 0.01 and apart.counted == "prompts"
    assert difference(measures.REGISTRY["drift"], pools[0], pools[1]).paired


def test_seeds_are_pooled(tmp_path):
    made = report_sweep.finish(report_sweep.make_seeds(tmp_path / "sweep"))
    for number, trial in enumerate(made.trials):
        write(trial, content(0.2 + 0.01 * (number % 3)))
    pool = gather.gather(made).pools[0]
    repeated = pool.estimates["repeated"]
    assert (repeated.value, repeated.seeds) == (pytest.approx(0.26), 3)
    assert repeated.seed_error == pytest.approx(0.01 / 3**0.5)


def test_a_share_over_seeds_is_no_more_certain_than_its_prompts_allow(tmp_path):
    """No prompt is followed under any seed: the textbook's error would be 0."""
    made = report_sweep.finish(report_sweep.make_seeds(tmp_path / "sweep"))
    size = len(IDS)
    for trial in made.trials:
        data = content(0.2)
        data["per_prompt"] |= {"all_followed": [0.0] * size, "instructions": [1] * size, "followed": [0] * size}
        write(trial, data)
    pooled = gather.gather(made).pools[0].estimates["following_prompt"]
    assert pooled.value == 0 and pooled.error == pytest.approx(estimates.share_error(0.0, size))


def test_a_verdict_rests_on_them(sweep):
    (verdict,) = judge.judge(gather.gather(sweep)).verdicts
    first, second = verdict.findings
    assert first.outcome == "supported" and "20 prompts, prompt by prompt" in first.text
    assert second.outcome == "inconclusive" and "was not evaluated (evaluate)" in second.text


def test_the_text_forms(sweep):
    report = gather.gather(sweep)
    text = markdown.render(report)
    assert "## What the policies say" in text
    assert "| 0 | 0.05 | 0.650 ± 0.011 |" in text
    assert "Answers to 20 prompts" in text
    assert (
        "Judge against the reference policy's answers: probe, which is right on 0.700 ± 0.020 of held-out pairs."
        in text
    )
    assert "| self-BLEU |" not in text and "| KL on own answers |" not in text  # nobody has them
    table = ending_table.render(sweep)
    assert "Answers to 20 prompts" in table and max(map(len, table.splitlines())) <= 80
    rows = list(csv.DictReader(io.StringIO(table_csv.render(report))))
    assert [float(row["repeated"]) for row in rows] == pytest.approx([0.45, 0.35, 0.25])
    assert rows[0]["kl_own"] == "" and float(rows[0]["win_error"]) == pytest.approx(0.05 / 19**0.5)


def test_the_page(sweep):
    pytest.importorskip("matplotlib")
    html = page.render(gather.gather(sweep))
    assert "<h2>What the policies say</h2>" in html and "<th>repeated 4-grams</th>" in html
    assert '<figure id="repeated-beta">' in html and "<dt>repeated 4-grams</dt>" in html
    assert "<th>KL on own answers" not in html and "right on 0.700 ± 0.020 of held-out pairs" in html


def test_without_scores_nothing_is_added(tmp_path):
    made = report_sweep.finish(report_sweep.make(tmp_path / "sweep"))
    report = gather.gather(made)
    assert "What the policies say" not in markdown.render(report) and "Answers to" not in ending_table.render(made)


def test_export_goes_by_them(sweep, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["export", "--by", "what", "--best", "--out", str(tmp_path / "x")])
    choices = capsys.readouterr().err
    assert all(key in choices for key in ("win", "following", "repeated", "distinct"))
    trial, why = judge.best(gather.gather(sweep), "repeated")
    assert trial.beta == 0.5 and "best repeated 4-grams of 3 trials: 0.250" in why
    assert judge.best(gather.gather(sweep), "win")[0].beta == 0.05


def test_an_unusable_judge_says_why(sweep):
    for trial in sweep.trials:
        data = content(0.2)
        del data["per_prompt"]["win"]
        data["judges"] = {"reference": {"name": "probe", "facts": {}, "unusable": "cannot be told: it may be chance"}}
        write(trial, data)
    text = markdown.render(gather.gather(sweep))
    assert "probe: no win rate, cannot be told: it may be chance." in text and "| win rate |" not in text


def test_what_speaks_against_a_judges_verdicts_is_told(sweep):
    facts = {"model": "m", "questions": 40, "no_verdict": 12, "first_position_preferred": 0.8}
    for trial in sweep.trials:
        write(trial, {**content(0.2), "judges": {"reference": {"name": "endpoint", "facts": facts}}})
    (told,) = (line for line in report_text.answers_measured(gather.gather(sweep)) if "Judge" in line)
    assert told.endswith(
        "endpoint m, no verdict on 12 of 20 comparisons, 80% of its verdicts for the answer shown first."
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(prompt_ids="x"),
        lambda data: data.update(prompt_ids=[]),
        lambda data: data.update(per_prompt=[1]),
        lambda data: data["per_prompt"].update(repeated=[0.1]),
        lambda data: data["per_prompt"].update(repeated=[float("nan")] * PROMPTS),
        lambda data: data["per_prompt"].update(repeated=[True] * PROMPTS),
        lambda data: data["per_prompt"].update(repeated=[None] * PROMPTS),
        lambda data: data.update(judges=["x"]),
    ],
)
def test_damaged_values_are_left_out(sweep, damage):
    data = content(0.4)
    damage(data)
    write(sweep.trials[0], data)
    report = gather.gather(sweep)
    assert data.get("judges") == ["x"] or "repeated" not in report.trials[0].estimates
    assert report.trials[1].estimates["repeated"].value == pytest.approx(0.35)
    markdown.render(report)


def test_links_are_not_followed(sweep, tmp_path):
    folder = sweep.trials[0].folder / "evaluation"
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    report = gather.gather(sweep)
    assert report.trials[0].scores is None and report.trials[0].done
    assert any("scores.json" in it and "is a link, or in a linked folder" in it for it in report.troubles)
    folder.unlink()
    folder.mkdir()
    os.symlink(elsewhere / "scores.json", folder / "scores.json")
    assert gather.gather(sweep).trials[0].scores is None


def test_keys_of_columns_are_what_scores_has():
    assert recorded_scores.FILE == "evaluation/scores.json"
    assert recorded_scores.scores({}) is None


def test_what_is_gained_for_kl_is_drawn(sweep):
    """One point a trial where both are known, none where one is missing."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for number, trial in enumerate(sweep.trials):
        data = content(0.1 * number)
        data["per_prompt"]["kl_own"] = [4.0 - number + 0.5 * (it % 2) for it in range(PROMPTS)]
        write(trial, data)
    report = gather.gather(sweep)
    drawn = {}
    for panel in panels.panels(report):
        figure, axes = pyplot.subplots()
        drawn[panel.key] = panel.draw(axes, report)
        if panel.key == "win-frontier":
            points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in "osD^vP*X"]
            assert points == pytest.approx([4.25, 3.25, 2.25])
        pyplot.close(figure)
    assert drawn["win-frontier"] and drawn["following-frontier"] and drawn["kl_own-beta"]
    assert not drawn["diversity-frontier"]


def test_the_course_of_kept_checkpoints_is_drawn_with_the_law_of_over_optimisation(sweep):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    law = over_optimisation.Law(0.2, 0.06)
    for number, trial in enumerate(sweep.trials):
        for step in (16, 4, 8, None):
            data = content(0.1)
            divergence = 1.0 + number + (step or 32) / 8
            data["per_prompt"]["kl_own"] = [divergence] * PROMPTS
            data["per_prompt"]["win"] = [0.5 + law.gained(divergence)] * PROMPTS
            write(trial, data, f"step-{step}" if step else "")
    report = gather.gather(sweep)
    assert [step for step, _ in report.trials[0].kept] == [4, 8, 16]
    (panel,) = (it for it in panels.panels(report) if it.key == "win-frontier")
    figure, axes = pyplot.subplots()
    assert panel.draw(axes, report)
    lines = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    assert lines == [pytest.approx([1.5 + it, 2 + it, 3 + it, 5 + it]) for it in range(3)]
    assert axes.get_legend().get_texts()[0].get_text().startswith("0.5 + d (0.200 - 0.060 ln d)")
    pyplot.close(figure)


def test_answers_that_were_made_otherwise_are_told_and_make_no_course(sweep):
    for trial, tokens in zip(sweep.trials, (256, 256, 512), strict=True):
        write(trial, {**content(0.1), "made": {"max_tokens": tokens, "beta": trial.beta, "seconds": tokens}})
        write(trial, {**content(0.1), "made": {"max_tokens": 256}}, "step-4")
    report = gather.gather(sweep)
    (told,) = (line for line in report_text.unequal(report) if "answers" in line)
    assert "(max_tokens)" in told and "run `evaluate` for all" in told
    assert [len(trial.kept) for trial in report.trials] == [1, 1, 0]


def test_other_policies_and_standard_suites(sweep):
    """Beside the trials; a link is not followed, and what is damaged is left out."""
    assert beside.tables(gather.gather(sweep)) == []
    own = sweep.folder / "evaluation"
    for name, file, data in (
        ("mine", "scores.json", content(0.4)),
        ("abc123", "suites.json", {"results": {"ifeval": {"acc": [0.25, 0.01]}}}),
        ("broken", "scores.json", ["no"]),
    ):
        (own / name).mkdir(parents=True, exist_ok=True)
        (own / name / file).write_text(json.dumps(data))
    (own / "linked").symlink_to(own / "mine")
    results = {"results": {"ifeval": {"acc": [0.5, None], "odd": "x"}, "arc": {"acc": [1.0, 0.0]}}}
    write(sweep.trials[1], results)
    (sweep.trials[1].folder / "evaluation" / "scores.json").rename(
        sweep.trials[1].folder / "evaluation" / "suites.json"
    )
    report = gather.gather(sweep)
    others, suites = beside.tables(report)
    assert [row[0] for row in others[2]] == ["mine"]
    assert others[2][0][others[1].index("repeated 4-grams")] == "0.450 ± 0.011"
    for trial, tokens in zip(sweep.trials, (256, 256, 256), strict=True):
        write(trial, {**content(0.1), "made": {"max_tokens": tokens}})
    (old, *_), *_ = beside.tables(gather.gather(sweep))[0][2]
    assert old.startswith("mine (not comparable, other max_tokens")
    assert suites[1] == ["policy", "ifeval: acc", "arc: acc"]
    own_row = [f"trial {sweep.trials[1].name}", "0.5000", "1.0000 ± 0.0000"]
    assert suites[2] == [["reference abc123", "0.2500 ± 0.0100", "-"], own_row]
    text = markdown.render(report)
    assert "### Standard suites, by lm-eval" in text and "| mine |" in text
    assert "<h3>Other policies on the same prompts</h3>" in page.render(report)


def test_the_law_needs_four_points():
    law = over_optimisation.Law(0.3, 0.1)
    points = [(x, law.gained(x)) for x in (0.0, 0.5, 3.0, 9.0, 20.0)]
    found = over_optimisation.fit(points)
    assert (found.alpha, found.beta) == pytest.approx((0.3, 0.1))
    assert over_optimisation.fit(points[:4]) is None and over_optimisation.fit([(2.0, 0.1)] * 9) is None


@pytest.mark.parametrize(
    ("drifts", "outcome"), [((4, 3, 1), "supported"), ((4, 4, 1), "inconclusive"), ((1, 3, 4), "contradicted")]
)
def test_whether_the_drift_of_answers_falls_as_beta_rises(sweep, drifts, outcome):
    """The second finding of the theory; without answers it is not there."""
    assert len(judge.judge(gather.gather(sweep)).theory) == 1
    for number, (trial, drift) in enumerate(zip(sweep.trials, drifts, strict=True)):
        data = content(0.3)
        data["per_prompt"]["kl_own"] = [drift + 0.5 * (prompt % (number + 2) == 0) for prompt in range(PROMPTS)]
        write(trial, data)
    found = judge.judge(gather.gather(sweep)).theory[1]
    assert "own answers falls as beta rises" in found.about and f"{PROMPTS} prompts" in found.text
    assert found.outcome == outcome
