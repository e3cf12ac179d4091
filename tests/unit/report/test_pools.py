"""Trials that differ in their seed alone are one row, whose error holds the spread between seeds."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest

from launcher.report import ending_table, gather, judge, markdown, page, table_csv
from launcher.report.measures import REGISTRY
from launcher.report.pools import difference
from tests.unit import report_sweep
from tests.unit.report_sweep import BETA, make_seeds

PAIRS = 40
BETAS, SEEDS = (0.05, 0.1, 0.5), (1, 2, 3)


def fill(sweep, margin) -> None:
    """Results whose rejected log-ratios are 0 and chosen ones margin(beta, seed, pair): drift is half their mean."""
    for trial in sweep.trials:
        seed = trial.config()["model"]["seed"]
        chosen = [margin(trial.beta, seed, pair) for pair in range(PAIRS)]
        data = report_sweep.result(trial.beta)
        data["final"]["val/rewards_chosen_mean"], data["final"]["val/rewards_rejected_mean"] = sum(chosen) / PAIRS, 0.0
        measured = {"log_ratio_chosen": chosen, "log_ratio_rejected": [0.0] * PAIRS}
        data["evaluation"]["per_pair"] = {**data["evaluation"]["per_pair"], **measured}
        (trial.folder / "result.json").write_text(json.dumps(data))


def noisy(draw, seed_spread=0.4, pair_spread=1.0, level=lambda beta: 5.0):
    """A level by beta, plus what a seed, a pair and both together add."""
    seeds = {(beta, seed): draw.gauss(0, seed_spread) for beta in BETAS for seed in SEEDS}
    pairs = [draw.gauss(0, pair_spread) for _ in range(PAIRS)]
    return lambda beta, seed, pair: level(beta) + seeds[beta, seed] + pairs[pair] + draw.gauss(0, 0.3)


@pytest.fixture
def sweep(tmp_path):
    made = make_seeds(tmp_path / "sweep")
    fill(made, noisy(random.Random(2), level=lambda beta: 4 - beta))
    return made


def test_one_table_of_three_betas_not_nine_rows(sweep):
    pytest.importorskip("matplotlib")
    report = gather.gather(sweep)
    assert [(pool.beta, pool.numbers) for pool in report.pools] == [
        (0.05, "0, 1, 2"),
        (0.1, "3, 4, 5"),
        (0.5, "6, 7, 8"),
    ]
    rows = [line for line in markdown.render(report).splitlines() if line.startswith("| ") and "±" in line]
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| 0, 1, 2", "0.05", "3"],
        ["| 3, 4, 5", "0.1", "3"],
        ["| 6, 7, 8", "0.5", "3"],
    ]
    assert "error over pairs and seeds" in markdown.render(report) and "One seed" not in markdown.render(report)
    table = ending_table.render(sweep).splitlines()
    assert [line.split("  ")[0].strip() for line in table[2:5]] == ["0, 1, 2", "3, 4, 5", "6, 7, 8"]
    html = page.render(report)
    assert html.count("<tr><td><span") == 3 and html.count('class="card"') == 3
    assert "3 seeds per beta" in html


def test_the_csv_keeps_every_trial(sweep):
    rows = list(csv.DictReader(io.StringIO(table_csv.render(gather.gather(sweep)))))
    assert [(row["beta"], row["seed"]) for row in rows] == [(str(beta), str(seed)) for beta in BETAS for seed in SEEDS]


def test_errors_are_those_of_a_second_computation(sweep):
    """With numpy: the pairs' averages over the seeds, the seeds' averages over the pairs, scipy's distribution."""
    numpy, stats = pytest.importorskip("numpy"), pytest.importorskip("scipy.stats")
    report = gather.gather(sweep)
    columns = {(trial.beta, trial.seed): numpy.array(trial.pairs["log_ratio_chosen"]) / 2 for trial in report.trials}
    first, second = (numpy.stack([columns[beta, seed] for seed in SEEDS]) for beta in (0.05, 0.5))
    own, between = difference(REGISTRY["drift"], *(report.pools[it] for it in (0, 2))), first - second
    for found, values in ((report.pools[0].estimates["drift"], first), (own, between)):
        over_pairs = stats.sem(values.mean(axis=0)) ** 2
        over_seeds = stats.sem(values.mean(axis=1)) ** 2
        assert found.value == pytest.approx(values.mean())
        assert found.error == pytest.approx((over_pairs + over_seeds) ** 0.5)
        assert found.seed_error == pytest.approx(over_seeds**0.5)
        t, share = values.mean() / (over_pairs + over_seeds) ** 0.5, over_seeds / (over_pairs + over_seeds)
        expected = share * stats.t.sf(t, len(SEEDS) - 1) + (1 - share) * stats.t.sf(t, PAIRS - 1)
        assert found.chance(1) == pytest.approx(expected, rel=1e-6)
    assert own.paired and own.seeds == 3


def test_one_seed_is_taken_to_spread_as_those_of_the_other_beta(sweep):
    """Two seeds of a beta have failed: the third alone shows no spread, and must not pass for certain."""
    whole = gather.gather(sweep).pools[0].estimates["drift"]
    for trial in sweep.trials[3:5]:
        (trial.folder / "result.json").unlink()
    report = gather.gather(sweep)
    three, one = report.pools[:2]
    assert one.estimates["drift"].seeds == 1
    apart = difference(REGISTRY["drift"], three, one)
    assert apart.seeds == 3 and not apart.paired
    assert apart.seed_error == pytest.approx(whole.seed_error * 2)  # s / sqrt 3 and s
    assert apart.error == pytest.approx((three.estimates["drift"].error ** 2 + one.estimates["drift"].error ** 2
                                         + 3 * whole.seed_error**2) ** 0.5)  # fmt: skip
    assert difference(REGISTRY["drift"], one, three).chance(-1) == apart.chance(1)
    (row,) = [line for line in markdown.render(report).splitlines() if line.startswith("| 3, 4, 5 |")]
    assert row.split(" | ")[2] == "1", "the seeds behind the figures"


def test_the_kl_is_pooled_too(tmp_path):
    report = gather.gather(report_sweep.finish(make_seeds(tmp_path / "sweep")))
    kl = report.pools[0].estimates["kl"]
    assert (kl.value, kl.error, kl.seeds) == (pytest.approx(0.1), pytest.approx(0.0045291, abs=1e-6), 3)


def test_a_difference_that_seeds_make_is_no_difference_between_betas(tmp_path):
    """Each seed alone shows 0.05 and 0.5 ten standard errors apart; the seeds disagree about the direction."""
    made = make_seeds(tmp_path / "sweep", hypotheses=[])
    shift = {1: 1.0, 2: -1.0, 3: 0.6}
    draw = random.Random(4)
    fill(made, lambda beta, seed, pair: 5 + (shift[seed] if beta == 0.05 else 0.0) + draw.gauss(0, 0.2))
    report = gather.gather(made)
    apart = difference(REGISTRY["drift"], report.pools[0], report.pools[2])
    assert apart.error > 0.25  # sd of 0.5, -0.5, 0.3 is 0.53, / sqrt 3
    for trial in made.trials:  # without the KL, which is the same for each seed
        path = trial.folder / "result.json"
        data = json.loads(path.read_text())
        data["evaluation"]["per_pair"] = {
            key: values for key, values in data["evaluation"]["per_pair"].items() if not key.startswith("kl")
        }
        path.write_text(json.dumps(data))
    (theory,) = judge.judge(gather.gather(made)).theory
    assert theory.outcome == "inconclusive"
    assert "seeds per beta" in theory.sentence and "3 seeds" in theory.sentence


def test_other_seeds_are_not_matched(tmp_path):
    made = report_sweep._create(
        tmp_path / "sweep",
        [
            ([f"{BETA}={beta}", f"model.seed={seed}"], report_sweep.config(beta, seed))
            for beta, seeds in ((0.05, (1, 2)), (0.5, (3, 4)))
            for seed in seeds
        ],
        [],
    )
    report_sweep.finish(made)
    pools = gather.gather(made).pools
    assert [len(pool.trials) for pool in pools] == [2, 2]
    found = difference(REGISTRY["drift"], *pools)
    assert not found.paired and found.seeds == 2


def test_a_seed_that_failed_is_left_out_and_named(sweep):
    (sweep.folder / "1" / "result.json").unlink()
    report = gather.gather(sweep)
    first = report.pools[0]
    own = [report.trials[it].estimates["drift"].value for it in (0, 2)]
    assert first.estimates["drift"].value == pytest.approx(sum(own) / 2) and first.estimates["drift"].seeds == 2
    assert first.why == "trial 1: not started"
    assert not difference(REGISTRY["drift"], first, report.pools[1]).paired


def test_the_same_trial_twice_is_no_second_seed(tmp_path):
    made = report_sweep.finish(report_sweep.make(tmp_path / "sweep", betas=(0.1, 0.1, 0.5)))
    assert [pool.numbers for pool in gather.gather(made).pools] == ["0", "1", "2"]


def test_best_is_the_best_seed_of_the_best_beta(tmp_path):
    made = make_seeds(tmp_path / "sweep", hypotheses=[])
    report_sweep.finish(made)
    # beta 0.05: 0.9 once and 0.5 twice; beta 0.1: 0.7, 0.75, 0.8
    accuracies = [0.9, 0.5, 0.5, 0.7, 0.8, 0.75, 0.5, 0.5, 0.5]
    for trial, accuracy in zip(made.trials, accuracies, strict=True):
        path = trial.folder / "result.json"
        data = json.loads(path.read_text())
        data["final"]["val/acc"] = accuracy
        path.write_text(json.dumps(data))
    trial, why = judge.best(gather.gather(made), "accuracy")
    assert trial.trial.number == 4
    assert "best accuracy of 9 trials: 0.750" in why and "mean of 3 seeds" in why


def test_null_sweeps_get_a_verdict_in_one_of_twenty_at_most(tmp_path):
    """60 sweeps of three equal betas, three seeds each. (Of 300, 8; with Satterthwaite's degrees of freedom 21.)"""
    hypotheses = [
        {"beta": 0.1, "name": "a", "claim": "", "expect": {"drift": "not highest"}},
        {"beta": 0.5, "name": "b", "claim": "", "expect": {"drift": "lowest"}},
        {"beta": 0.05, "name": "c", "claim": "", "expect": {"drift": "highest"}},
    ]
    made = make_seeds(tmp_path / "sweep", hypotheses=hypotheses)
    draw, wrong = random.Random(1), 0
    for _ in range(60):
        fill(made, noisy(draw))
        findings = [it for it in judge.judge(gather.gather(made)).findings if it.about.startswith("drift")]
        wrong += any(it.outcome != "inconclusive" for it in findings)
    assert wrong <= 3
