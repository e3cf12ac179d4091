"""The report's estimates and verdicts, against values computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from launcher import estimates
from launcher.report import gather, judge, markdown, recorded, table_csv, text
from launcher.report.measures import REGISTRY
from launcher.report.pools import difference, progress
from launcher.status.trial_state import TrialState
from tests.unit import report_sweep
from tests.unit.report_sweep import PAIRS, START, make

SQRT40 = math.sqrt(40)


@pytest.fixture
def sweep(tmp_path):
    return make(tmp_path / "sweep")


@pytest.fixture
def done(sweep):
    return gather.gather(report_sweep.finish(sweep))


# -- measures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("accuracy", [1, 1, 1, 1]),
        ("margin", [0.4, 0.3, 0.1, 0.4]),
        ("drift", [4, 3, 1, 4]),
        ("loss", [0.513015, 0.554355, 0.644397, 0.513015]),  # ln(1 + exp(-margin))
        ("chosen", [2, 4, -1, 3]),
        ("kl", [3, 3, 2, 2]),
    ],
)
def test_each_pair(measure, expected):
    values, sizes = REGISTRY[measure].terms(PAIRS[0.05], 0.05)
    assert values == pytest.approx(expected, abs=1e-6)
    assert sizes == ([20, 30, 20, 30] if measure == "kl" else [1, 1, 1, 1])


def test_drift_of_a_pair_counts_by_the_sign_of_the_mean():
    both_fall = {"log_ratio_chosen": [-1.0, 0.5, -2.5], "log_ratio_rejected": [-3.0, -3.0, -3.0]}
    values, _ = REGISTRY["drift"].terms(both_fall, 0.1)
    assert values == pytest.approx([2.0, 1.25, 2.75])  # mean 2 = (1 + 3) / 2


def test_differences_are_taken_pair_by_pair(done):
    found = difference(REGISTRY["drift"], done.pools[0], done.pools[2])  # 3 2.5 0.5 3, ten times
    assert found.paired
    assert found.value == pytest.approx(2.25)
    assert found.error == pytest.approx(0.595119 * math.sqrt(3 / 39))  # of four: 0.595119
    kl = difference(REGISTRY["kl"], done.pools[0], done.pools[1])  # half of all: 5 nats over 100 tokens
    assert kl.value == pytest.approx(0.05)
    assert kl.error == pytest.approx(0.0081650 * math.sqrt(3 / 39), abs=1e-7)


def test_accuracies_that_agree_on_every_pair_still_have_an_error(done):
    found = difference(REGISTRY["accuracy"], done.pools[0], done.pools[1])  # right on all, both
    assert found.value == 0.0
    assert found.error == pytest.approx(1 / 42)  # sqrt(0.5 + 0.5) / (40 + 2)


def test_differences_of_other_pairs_are_not_taken_pair_by_pair(sweep):
    report_sweep.finish(sweep)
    path = sweep.folder / "2" / "result.json"
    changed = json.loads(path.read_text())
    changed["evaluation"]["per_pair"]["tokens_chosen"][3] += 1
    path.write_text(json.dumps(changed))
    pools = gather.gather(sweep).pools
    found = difference(REGISTRY["drift"], pools[0], pools[2])
    assert not found.paired
    assert found.error == pytest.approx(math.hypot(*(pools[it].estimates["drift"].error for it in (0, 2))))


@pytest.mark.parametrize("broken", [None, {}, {"per_pair": 3}, {"per_pair": {**PAIRS[0.5], "kl_chosen": [1.0]}}])
def test_a_broken_evaluation_has_no_pairs(broken):
    assert recorded.result({"evaluation": broken}).evaluation is None or recorded.evaluation(broken).pairs is None


@pytest.mark.parametrize(
    "odd", [{"pairs": 5}, {"seconds": 1e400}, {"final": 3}, {"versions": []}, {"steps": "x"}, {"evaluation": [1]}]
)
def test_an_odd_result_is_read(odd):
    found = recorded.result(odd)
    assert (found.steps, found.seconds, found.final, found.train_pairs) == (None, None, None, None)


# -- gather ------------------------------------------------------------------------------------------------------------


def test_figures_of_an_evaluated_trial(done):
    first = done.trials[0]
    assert (first.trial.beta, first.done, first.validated, first.step, first.max_steps) == (0.05, True, 40, 20, 20)
    assert first.estimates["accuracy"].value == 0.75
    # Agresti and Coull: (30 + 2) / (40 + 4)
    assert first.estimates["accuracy"].error == pytest.approx(0.067141, abs=1e-6)
    assert first.estimates["drift"].value == 3.0
    # the spread of 4 3 1 4, ten times, over the 40 that were validated
    assert first.estimates["drift"].error == pytest.approx(math.sqrt(60 / 39) / SQRT40)
    assert first.estimates["margin"].value == pytest.approx(0.3)
    assert first.estimates["margin"].error == pytest.approx(0.1 * math.sqrt(60 / 39) / SQRT40)
    assert first.estimates["kl"].value == pytest.approx(0.1)
    assert not first.estimates["drift"].at_most


def test_without_an_evaluation_errors_are_upper_bounds(sweep):
    first = gather.gather(report_sweep.finish(sweep, evaluated=False)).trials[0]
    assert "kl" not in first.estimates
    assert first.estimates["drift"].at_most
    assert first.estimates["drift"].error == pytest.approx(8 / SQRT40)
    assert first.estimates["chosen"].error == pytest.approx(math.sqrt(2) * 8 / SQRT40)
    assert first.estimates["margin"].error == pytest.approx(2 * 0.05 * 8 / SQRT40)
    assert first.estimates["loss"].error is None
    assert not first.estimates["accuracy"].at_most


@pytest.mark.parametrize("spread", [[3.0, -2.0, 7.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-40.0, 3.0, 9.0, -8.0]])
@pytest.mark.parametrize("other", [[0.0, 5.0, -3.0, 1.0], [3.0, -2.0, 7.0, 0.0], [-3.0, 2.0, -7.0, 0.0]])
def test_the_bound_holds(spread, other):
    """What rewards_all_std allows is never less than the error that the pairs have."""
    pairs = {"log_ratio_chosen": spread, "log_ratio_rejected": other}
    together = spread + other
    middle = sum(together) / 8
    std = math.sqrt(sum((value - middle) ** 2 for value in together) / 7)
    # Bessel's correction is of 8 values in the one and of 4 in the other.
    allowed = std / 2 * math.sqrt((7 / 8) * (4 / 3)) + 1e-12
    for key in ("drift", "chosen", "margin"):
        measure = REGISTRY[key]
        assert estimates.ratio(*measure.terms(pairs, 0.5)).error <= measure.bound(allowed, 0.5)


def test_the_number_of_pairs_is_what_was_validated_not_what_the_data_hold(sweep):
    """With limit_val_batches=1 a validation takes one batch of 8; the file holds 44 pairs."""
    report_sweep.finish(sweep)
    for trial in sweep.trials:
        path = trial.folder / "result.json"
        data = json.loads(path.read_text())
        data["final"]["val/pairs"] = 8
        path.write_text(json.dumps(data))
    report = gather.gather(sweep)
    accuracy = report.trials[0].estimates["accuracy"]
    assert (accuracy.pairs, accuracy.error) == (8, pytest.approx(estimates.share_error(0.75, 8)))
    assert report.trials[0].estimates["drift"].error == pytest.approx(math.sqrt(60 / 39 / 8))
    assert "Measured on 8 held-out pairs (KL: on 40) after 20 steps" in text.measured(report)
    assert "8 held-out pairs" in text.summary(report) and "44 held-out" not in markdown.render(report)


def test_an_error_is_not_made_up_where_the_number_of_pairs_is_not_known(sweep):
    report_sweep.finish(sweep)
    for trial in sweep.trials:
        path = trial.folder / "result.json"
        data = json.loads(path.read_text())
        del data["final"]["val/pairs"]
        path.write_text(json.dumps(data))
    report = gather.gather(sweep)
    assert all(report.trials[0].estimates[key].error is None for key in ("accuracy", "drift", "loss"))
    assert "an unknown number of held-out pairs" in text.measured(report)


def test_cost(done):
    cost = done.trials[0].cost
    assert (cost.seconds, cost.ranks, cost.device, cost.waited, cost.restarts) == (1800.0, 2, "gpu", 90.0, 0)
    assert cost.hours == 1.0
    _, rows, total = text.cost_table(done)
    assert rows[0] == ["beta 0.05", "2", "1", "30:00", "1:30", "0"]
    assert total.startswith("3 GPU-hours in all, 1:30:00 of wall")


def test_cost_of_two_starts_without_a_result(sweep):
    again = [{**row, "time": row["time"] + 5000} for row in report_sweep.lines(0.05)[:4]]  # 30 s
    report_sweep.write_lines(sweep, 0, report_sweep.lines(0.05)[:5] + again)  # 500 s, then the second
    cost = gather.gather(sweep).trials[0].cost
    assert cost.seconds == 530.0
    assert cost.restarts == 1
    assert cost.ranks == 2  # as the config asks
    assert cost.waited == 90.0


def test_history_takes_the_last_of_a_step_and_no_accuracy_before_the_first(sweep):
    rows = report_sweep.lines(0.05)
    later = {"time": START + 3000, **report_sweep.validation(10, 8.0, -8.0, loss=0.5)}
    report_sweep.write_lines(sweep, 0, [*rows, later])
    trial = gather.gather(sweep).trials[0]
    assert trial.history(REGISTRY["accuracy"]) == [(10, 0.75), (20, 0.75)]
    assert trial.history(REGISTRY["drift"]) == [(0, 0.0), (10, 8.0), (20, 3.0)]
    assert trial.history(REGISTRY["margin"])[1] == (10, pytest.approx(0.8))
    assert trial.history(REGISTRY["kl"]) == []


def test_differences_of_the_configs_leave_out_where_things_lie(done):
    assert done.differences == (("model.dpo.ref_policy_kl_penalty", {0: "0.05", 1: "0.1", 2: "0.5"}),)


# -- at any moment -----------------------------------------------------------------------------------------------------


def test_nothing_has_started(sweep):
    report = gather.gather(sweep)
    assert [trial.why for trial in report.trials] == ["not started"] * 3
    assert text.warnings(report)[0].startswith("Partial: 3 of 3 trials have no result (beta 0.05: not started;")
    assert {verdict.outcome for verdict in judge.judge(report).verdicts} == {"inconclusive"}
    assert "0 of 3 trials done" in markdown.render(report)


def test_every_cut_of_a_growing_file_is_read(sweep):
    """Half-written lines included, byte by byte."""
    whole = "".join(json.dumps(row) + "\n" for row in report_sweep.lines(0.05)[:5]).encode()
    path = sweep.folder / "0" / "metrics.jsonl"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        report = gather.gather(sweep)
        assert not report.trials[0].done
        markdown.render(report)
    path.write_bytes(whole)
    trial = gather.gather(sweep).trials[0]
    assert (trial.step, trial.max_steps, trial.estimates["drift"].value) == (10, 20, 1.5)
    assert progress(trial) == ", step 10/20"


def test_half_a_result_and_a_missing_folder(sweep):
    (sweep.folder / "0" / "result.json").write_text('{"beta": 0.0')
    (sweep.folder / "1" / "config.yaml").unlink()
    (sweep.folder / "1").rmdir()
    report = gather.gather(sweep)
    assert not any(trial.done for trial in report.trials)
    assert report.trials[1].config == {}


def test_a_diverged_trial_has_no_loss(sweep):
    rows = report_sweep.lines(0.05)
    rows[-2] = {**rows[-2], "val/loss": None, "val/rewards_chosen_mean": None}
    report_sweep.write_lines(sweep, 0, rows)
    trial = gather.gather(sweep).trials[0]
    assert "loss" not in trial.estimates and "drift" not in trial.estimates
    assert trial.estimates["accuracy"].value == 0.75


def test_state_says_why_there_is_no_result(sweep):
    state = TrialState(trial=sweep.trials[1], state="FAILED", error="ValueError: no luck", restarts=2)
    trial = gather.gather(sweep, [state]).trials[1]
    assert trial.why == "failed: ValueError: no luck"
    assert trial.cost.restarts == 2


# -- verdicts ----------------------------------------------------------------------------------------------------------


def words(report) -> dict[str, str]:
    return {verdict.name: verdict.outcome for verdict in judge.judge(report).verdicts}


def test_verdicts_and_the_figures_they_rest_on(done):
    assert words(done) == {"balanced": "supported", "conservative": "supported", "unstable": "supported"}
    unstable = judge.judge(done).verdicts[2].findings[0]
    # Against the nearest, 0.1: differences 2 1.5 0.5 2, ten times: mean 1.5, squares 15, sqrt(15 / 39 / 40)
    assert unstable.text == (
        "3.000 ± 0.20 nats per response at beta 0.05; 1.500 ± 0.098 nats per response at beta 0.1; "
        "difference +1.500 ± 0.098 (15.2 standard errors; 40 pairs, pair by pair)"
    )
    chance = judge.judge(done).verdicts[0].findings[0]
    assert (
        chance.text
        == "0.750 ± 0.067 at beta 0.1, chance is 0.5; difference +0.250 ± 0.067 (3.7 standard errors; 40 pairs)"
    )
    assert chance.chance_for == pytest.approx(math.erfc(0.25 / 0.067141 / math.sqrt(2)) / 2, rel=1e-3)
    assert chance.adjusted == pytest.approx(2 * chance.chance_for)  # the largest of five is not multiplied


def test_several_findings_are_corrected_for(done):
    """Holm's correction: alone a p-value of 0.02 counts, as the smallest of five it does not."""
    findings = judge.judge(done).findings
    assert len(findings) == 5
    assert [it.adjusted for it in findings] == estimates.holm([it.chance for it in findings])
    assert "Holm's correction for 5 findings" in markdown.render(done)


def test_overlapping_errors_cannot_be_told(sweep):
    """Without an evaluation: 3.0 against 1.5, each +- at most 1.26, so the difference +- at most 1.79."""
    report = gather.gather(report_sweep.finish(sweep, evaluated=False))
    assert words(report) == {
        "balanced": "inconclusive",
        "conservative": "inconclusive",
        "unstable": "inconclusive",
    }
    figure = judge.judge(report).verdicts[2].findings[0].text
    assert figure.endswith("difference +1.5 ± ≤ 1.8 (at least 0.8 standard errors; 40 pairs)")
    assert [one.outcome for one in judge.judge(report).theory] == ["inconclusive"]


def test_a_wrong_hypothesis_is_contradicted(tmp_path):
    wrong = [
        {"beta": 0.5, "name": "a", "claim": "", "expect": {"drift": "highest"}},
        {"beta": 0.05, "name": "b", "claim": "", "expect": {"drift": "not highest", "accuracy": "above chance"}},
    ]
    report = gather.gather(report_sweep.finish(make(tmp_path / "s", hypotheses=wrong)))
    assert words(report) == {"a": "contradicted", "b": "contradicted"}


def test_what_is_missing_keeps_a_verdict_open(sweep):
    report = gather.gather(report_sweep.finish(sweep, 0, 1))
    assert words(report) == {"balanced": "supported", "conservative": "inconclusive", "unstable": "inconclusive"}
    assert judge.judge(report).verdicts[1].why == "its trial has no result (not started)"
    assert judge.judge(report).verdicts[2].findings[0].text.endswith("; nothing is known about beta 0.5 yet")
    assert judge.judge(report).theory[0].outcome == "inconclusive"


def test_what_is_missing_does_not_save_a_wrong_hypothesis(tmp_path):
    wrong = [{"beta": 0.1, "name": "a", "claim": "", "expect": {"drift": "highest"}}]
    report = gather.gather(report_sweep.finish(make(tmp_path / "s", hypotheses=wrong), 0, 1))
    assert words(report) == {"a": "contradicted"}


@pytest.mark.parametrize(
    ("hypothesis", "why"),
    [
        ({"beta": 0.3}, "no trial of this sweep has this beta"),
        ({"beta": 0.05}, "does not name the measure"),
        ({"beta": 0.05, "expect": {"charm": "highest"}}, "unknown measure 'charm'"),
        ({"beta": 0.05, "expect": {"drift": "large"}}, "has 'large' for drift"),
        ({"beta": 0.05, "expect": {"loss": "above chance"}}, "compares loss with a chance level"),
        ({"beta": 0.05, "expect": {"loss": "highest"}}, "cannot rank betas by loss"),
        ({"beta": 0.05, "expect": "drift"}, "must name a measure"),
    ],
)
def test_a_hypothesis_that_cannot_be_judged(tmp_path, hypothesis, why):
    sweep = make(tmp_path / "s", hypotheses=[{"name": "a", "claim": "b", **hypothesis}])
    (verdict,) = judge.judge(gather.gather(report_sweep.finish(sweep))).verdicts
    assert verdict.outcome == "inconclusive"
    assert why in verdict.why


def test_theory_compares_each_beta_with_the_next(done):
    (one,) = judge.judge(done).theory
    assert one.outcome == "supported"
    assert "beta 0.05 minus beta 0.1: +0.0500 ± 0.0023 (22.0 standard errors; 40 pairs, pair by pair)" in one.text


# -- text --------------------------------------------------------------------------------------------------------------


def test_markdown(done):
    found = markdown.render(done, "report.png")
    row = (
        "| 0 | 0.05 | 0.6000 ± 0.0086 | 0.750 ± 0.067 | +0.3000 ± 0.020 | +2.000 ± 0.30 | -4.000 ± 0.25 "
        "| 3.000 ± 0.20 | 0.1000 ± 0.0045 |"
    )
    assert row in found.splitlines()
    assert "![plots](report.png)" in found
    assert "not multiplied by beta" in found
    assert "- **beta 0.05, unstable** (drifts furthest): **supported**." in found
    assert "> **" not in found  # nothing to warn of


def test_csv(done):
    rows = list(csv.DictReader(io.StringIO(table_csv.render(done))))
    assert [row["beta"] for row in rows] == ["0.05", "0.1", "0.5"]
    assert float(rows[2]["drift"]) == 0.75
    assert float(rows[0]["kl_error"]) == pytest.approx(0.0045291, abs=1e-6)
    assert (rows[0]["rank_hours"], rows[0]["state"], rows[0]["errors_at_most"]) == ("1", "DONE", "0")


def test_average_log_probabilities_are_counted_by_token(tmp_path):
    sweep = make(tmp_path / "s", preference_average_log_probs=True)
    report = gather.gather(report_sweep.finish(sweep))
    assert report.per == "token"
    assert report.trials[0].estimates["drift"].at_most  # the pairs that were evaluated are sums, not averages
    assert "nats per token, not multiplied" in markdown.render(report)
