"""The report's figures and verdicts, against values computed by hand."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from launcher.report import figures, gather, judge, text
from tests.unit import report_sweep
from tests.unit.report_sweep import PAIRS, START, make

SQRT40 = math.sqrt(40)


@pytest.fixture
def sweep(tmp_path):
    return make(tmp_path / "sweep")


@pytest.fixture
def done(sweep):
    return gather.gather(report_sweep.finish(sweep))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_mean_and_its_standard_error():
    found = figures.mean([1.0, 2.0, 3.0, 6.0])  # deviations -2 -1 0 3, squares 14, / 3, sqrt, / sqrt 4
    assert (found.value, found.pairs) == (3.0, 4)
    assert found.error == pytest.approx(1.0801234)
    assert figures.mean([5.0]).error is None


def test_kl_weighs_tokens_and_takes_the_pair_as_the_unit():
    found = figures.kl(PAIRS[0.05])  # 10 nats over 100 tokens; residuals 1 0 0 -1; sqrt(4 * 2 / 3) / 100
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.0163299, abs=1e-7)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("accuracy", [1, 1, 1, 1]),
        ("margin", [0.4, 0.3, 0.1, 0.4]),
        ("drift", [4, 3, 1, 4]),
        ("loss", [0.513015, 0.554355, 0.644397, 0.513015]),  # ln(1 + exp(-margin))
    ],
)
def test_each_pair(measure, expected):
    assert figures.each_pair(measure, PAIRS[0.05], 0.05) == pytest.approx(expected, abs=1e-6)


def test_drift_of_a_pair_counts_by_the_sign_of_the_mean():
    both_fall = {"log_ratio_chosen": [-1.0, 0.5, -2.5], "log_ratio_rejected": [-3.0, -3.0, -3.0]}
    assert figures.each_pair("drift", both_fall, 0.1) == pytest.approx([2.0, 1.25, 2.75])  # mean 2 = (1 + 3) / 2


def test_differences_are_taken_pair_by_pair():
    found = figures.difference("drift", PAIRS[0.05], PAIRS[0.5], (0.05, 0.5))  # 3 2.5 0.5 3
    assert found is not None and found.paired
    assert found.value == pytest.approx(2.25)
    assert found.error == pytest.approx(0.595119)
    kl = figures.difference("kl", PAIRS[0.05], PAIRS[0.1], (0.05, 0.1))  # half of all: 5 nats over 100 tokens
    assert kl is not None
    assert kl.value == pytest.approx(0.05)
    assert kl.error == pytest.approx(0.0081650, abs=1e-7)


def test_accuracies_that_agree_on_every_pair_still_have_an_error():
    found = figures.difference("accuracy", PAIRS[0.05], PAIRS[0.1], (0.05, 0.1))  # right on all four, both
    assert found is not None
    assert found.value == 0.0
    assert found.error == pytest.approx(1 / 6)  # sqrt(0.5 + 0.5) / (4 + 2)


def test_differences_of_other_pairs_are_not_taken():
    other = {**PAIRS[0.5], "tokens_chosen": [10, 20, 10, 11]}
    assert figures.difference("drift", PAIRS[0.05], other, (0.05, 0.5)) is None


@pytest.mark.parametrize(
    ("value", "error", "form", "expected"),
    [
        (0.625, 0.0861, ".3f", "0.625 ± 0.086"),
        (-0.000655, 0.0000612, "+.0f", "-0.000655 ± 0.000061"),
        (2.25, 0.595, "+.0f", "+2.25 ± 0.59"),
        (123.4, 12.3, ".3f", "123.400 ± 12"),
        (0.5, None, ".3f", "0.500"),
        (1.0, 0.0, ".3f", "1.000 ± 0.00"),
    ],
)
def test_value_and_error_in_words(value, error, form, expected):
    assert figures.pm(value, error, form) == expected


@pytest.mark.parametrize("broken", [None, {}, {"per_pair": 3}, {"per_pair": {**PAIRS[0.5], "kl_chosen": [1.0]}}])
def test_a_broken_evaluation_is_none(broken):
    assert figures.columns(broken) is None


# -- gather ------------------------------------------------------------------------------------------------------------


def test_figures_of_an_evaluated_trial(done):
    first = done.trials[0]
    assert (first.trial.beta, first.done, first.pairs, first.step, first.max_steps) == (0.05, True, 40, 20, 20)
    assert first.accuracy.value == 0.75
    # Agresti and Coull: (30 + 2) / (40 + 4)
    assert first.accuracy.error == pytest.approx(0.067141, abs=1e-6)
    assert first.drift.value == 3.0
    assert first.drift.error == pytest.approx(
        math.sqrt(2) / SQRT40
    )  # spread of 4 3 1 4, over the 40 that were validated
    assert first.margin.value == pytest.approx(0.3)
    assert first.margin.error == pytest.approx(0.1 * math.sqrt(2) / SQRT40)
    assert first.kl.value == pytest.approx(0.1)
    assert not first.drift.at_most


def test_without_an_evaluation_errors_are_upper_bounds(sweep):
    first = gather.gather(report_sweep.finish(sweep, evaluated=False)).trials[0]
    assert first.kl is None
    assert first.drift.at_most
    assert first.drift.error == pytest.approx(8 / SQRT40)
    assert first.chosen.error == pytest.approx(math.sqrt(2) * 8 / SQRT40)
    assert first.margin.error == pytest.approx(2 * 0.05 * 8 / SQRT40)
    assert first.loss.error is None
    assert not first.accuracy.at_most


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
    assert figures.mean(figures.each_pair("drift", pairs, 0.5)).error <= allowed
    assert figures.mean(spread).error <= math.sqrt(2) * allowed
    assert figures.mean(figures.each_pair("margin", pairs, 0.5)).error <= 2 * 0.5 * allowed


def test_validated_pairs_are_whole_batches(sweep):
    config = {"model": {"global_batch_size": 8}, "trainer": {"dpo": {"limit_val_batches": 3}}}
    assert gather._validated(config, 44) == 24
    config["trainer"]["dpo"]["limit_val_batches"] = 0.5
    assert gather._validated(config, 44) == 16  # int(5 * 0.5) batches
    assert gather._validated({}, 44) == 44


def test_cost(done):
    cost = done.trials[0].cost
    assert (cost.seconds, cost.ranks, cost.device, cost.waited, cost.restarts) == (1800.0, 2, "gpu", 90.0, 0)
    assert cost.hours == 1.0
    _, rows, total = text.costs(done)
    assert rows[0] == ["beta 0.05", "2", "1", "30:00", "1:30", "0"]
    assert total.startswith("3 GPU-hours in all, 1:30:00 of wall")


def test_cost_of_two_attempts_without_a_result(sweep):
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
    history = gather.gather(sweep).trials[0].history
    assert [(point.step, point.accuracy, point.drift) for point in history] == [
        (0, None, 0.0),
        (10, 0.75, 8.0),
        (20, 0.75, 3.0),
    ]
    assert history[1].margin == pytest.approx(0.8)


def test_differences_of_the_configs_leave_out_where_things_lie(done):
    assert done.differences == (("model.dpo.ref_policy_kl_penalty", ("0.05", "0.1", "0.5")),)


# -- at any moment -----------------------------------------------------------------------------------------------------


def test_nothing_has_started(sweep):
    report = gather.gather(sweep)
    assert [trial.why for trial in report.trials] == ["not started"] * 3
    assert text.warnings(report)[0].startswith("Partial: 3 of 3 trials have no result (beta 0.05: not started;")
    assert {verdict.word for verdict in judge.verdicts(report)} == {"cannot be told"}
    assert "0 of 3 trials done" in text.markdown(report)


def test_every_cut_of_a_growing_file_is_read(sweep):
    """Half-written lines included, byte by byte."""
    whole = "".join(json.dumps(row) + "\n" for row in report_sweep.lines(0.05)[:5]).encode()
    path = sweep.folder / "0" / "metrics.jsonl"
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        report = gather.gather(sweep)
        assert not report.trials[0].done
        text.markdown(report)
    path.write_bytes(whole)
    trial = gather.gather(sweep).trials[0]
    assert (trial.step, trial.max_steps, trial.drift.value) == (10, 20, 1.5)
    assert text.progress(trial) == ", step 10/20"


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
    assert trial.loss is None and trial.drift is None
    assert trial.accuracy.value == 0.75


def test_state_says_why_there_is_no_result(sweep):
    from types import SimpleNamespace

    state = SimpleNamespace(trial=sweep.trials[1], state="FAILED", reason="", error="ValueError: no luck", restarts=2)
    trial = gather.gather(sweep, [state]).trials[1]
    assert trial.why == "failed: ValueError: no luck"
    assert trial.cost.restarts == 2


# -- verdicts ----------------------------------------------------------------------------------------------------------


def words(report) -> dict[str, str]:
    return {verdict.name: verdict.word for verdict in judge.verdicts(report)}


def test_verdicts_and_the_figures_they_rest_on(done):
    assert words(done) == {"balanced": "supported", "conservative": "supported", "unstable": "supported"}
    unstable = judge.verdicts(done)[2].findings[0]
    # Against the nearest, 0.1: differences 2 1.5 0.5 2, mean 1.5, standard error 0.353553
    assert unstable.figure == (
        "3.00 ± 0.22 nats a response at beta 0.05; 1.50 ± 0.11 nats a response at beta 0.1; "
        "difference +1.50 ± 0.35 (4.2 standard errors; 4 pairs, one by one)"
    ).replace("3.00", "3.000").replace("1.50 ± 0.11", "1.500 ± 0.11")
    chance = judge.verdicts(done)[0].findings[0]
    assert (
        chance.figure
        == "0.750 ± 0.067 at beta 0.1, chance is 0.5; difference +0.250 ± 0.067 (3.7 standard errors; 40 pairs)"
    )


def test_overlapping_errors_cannot_be_told(sweep):
    """Without an evaluation: 3.0 against 1.5, each +- at most 1.26, so the difference +- at most 1.79."""
    report = gather.gather(report_sweep.finish(sweep, evaluated=False))
    assert words(report) == {
        "balanced": "cannot be told",
        "conservative": "cannot be told",
        "unstable": "cannot be told",
    }
    figure = judge.verdicts(report)[2].findings[0].figure
    assert figure.endswith("difference +1.5 ± ≤ 1.8 (at least 0.8 standard errors; 40 pairs)")
    assert [one.word for one in judge.theory(report)] == ["cannot be told"]


def test_a_wrong_hypothesis_is_contradicted(tmp_path):
    wrong = [
        {"beta": 0.5, "name": "a", "claim": "", "expect": {"drift": "highest"}},
        {"beta": 0.05, "name": "b", "claim": "", "expect": {"drift": "not highest", "accuracy": "above chance"}},
    ]
    report = gather.gather(report_sweep.finish(make(tmp_path / "s", hypotheses=wrong)))
    assert words(report) == {"a": "contradicted", "b": "contradicted"}


def test_what_is_missing_keeps_a_verdict_open(sweep):
    report = gather.gather(report_sweep.finish(sweep, 0, 1))
    assert words(report) == {"balanced": "supported", "conservative": "cannot be told", "unstable": "cannot be told"}
    assert judge.verdicts(report)[1].why == "its trial has no result (not started)"
    assert judge.verdicts(report)[2].findings[0].figure.endswith("; nothing is known of beta 0.5 yet")
    assert judge.theory(report)[0].word == "cannot be told"


def test_what_is_missing_does_not_save_a_wrong_hypothesis(tmp_path):
    wrong = [{"beta": 0.1, "name": "a", "claim": "", "expect": {"drift": "highest"}}]
    report = gather.gather(report_sweep.finish(make(tmp_path / "s", hypotheses=wrong), 0, 1))
    assert words(report) == {"a": "contradicted"}


@pytest.mark.parametrize(
    ("hypothesis", "why"),
    [
        ({"beta": 0.3}, "no trial of this sweep has this beta"),
        ({"beta": 0.05}, "does not say which figure it is about"),
        ({"beta": 0.05, "expect": {"charm": "highest"}}, "knows no measure 'charm'"),
        ({"beta": 0.05, "expect": {"drift": "large"}}, "cannot expect 'large' of drift"),
        ({"beta": 0.05, "expect": {"loss": "above chance"}}, "knows no chance level of loss"),
        ({"beta": 0.05, "expect": "drift"}, "must say what is expected"),
    ],
)
def test_a_hypothesis_that_cannot_be_judged(tmp_path, hypothesis, why):
    sweep = make(tmp_path / "s", hypotheses=[{"name": "a", "claim": "b", **hypothesis}])
    (verdict,) = judge.verdicts(gather.gather(report_sweep.finish(sweep)))
    assert verdict.word == "cannot be told"
    assert why in verdict.why


def test_theory_compares_each_beta_with_the_next(done):
    (one,) = judge.theory(done)
    assert one.word == "supported"
    assert "beta 0.05 less beta 0.1: +0.0500 ± 0.0082 (6.1 standard errors; 4 pairs, one by one)" in one.figure


# -- text --------------------------------------------------------------------------------------------------------------


def test_markdown(done):
    found = text.markdown(done, "report.png")
    row = (
        "| 0 | 0.05 | 0.6000 ± 0.0098 | 0.750 ± 0.067 | +0.3000 ± 0.022 | +2.000 ± 0.34 | -4.000 ± 0.29 "
        "| 3.000 ± 0.22 | 0.1000 ± 0.016 |"
    )
    assert row in found.splitlines()
    assert "![plots](report.png)" in found
    assert "not multiplied by beta" in found
    assert "- **beta 0.05, unstable** (drifts furthest): **supported**." in found
    assert "> **" not in found  # nothing to warn of


def test_csv(done):
    rows = list(csv.DictReader(io.StringIO(text.table_csv(done))))
    assert [row["beta"] for row in rows] == ["0.05", "0.1", "0.5"]
    assert float(rows[2]["drift"]) == 0.75
    assert float(rows[0]["kl_error"]) == pytest.approx(0.0163299, abs=1e-6)
    assert (rows[0]["rank_hours"], rows[0]["state"], rows[0]["errors_at_most"]) == ("1", "DONE", "0")


def test_average_log_probabilities_are_counted_by_token(tmp_path):
    sweep = make(tmp_path / "s", preference_average_log_probs=True)
    report = gather.gather(report_sweep.finish(sweep))
    assert report.per == "token"
    assert report.trials[0].drift.at_most  # the pairs that were evaluated are sums, not averages
    assert "nats a token, not multiplied" in text.markdown(report)
