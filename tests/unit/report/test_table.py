"""The table after a run: the results, the report's own sentences, and nothing that the errors do not allow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from launcher.report import ending_table, judge, markdown, text
from launcher.report.gather import gather
from launcher.status.trial_state import TrialState
from launcher.sweep.folder import Sweep
from tests.unit import report_sweep

# beta: (validation loss, accuracy, log-ratio of chosen, of rejected)
AS_EXPECTED = {0.5: (0.5912, 0.625, 0.3, -1.2), 0.05: (0.6612, 0.59375, -3.6, -5.7), 0.1: (0.64, 0.61, -1.2, -3.1)}
BETA = "++model.dpo.ref_policy_kl_penalty="


def sweep(tmp_path: Path, figures: dict[float, tuple[float, ...] | None], pairs: int = 64, std: float = 0.5) -> Sweep:
    trials = [([f"{BETA}{beta}"], {"model": {"dpo": {"ref_policy_kl_penalty": beta}}}) for beta in figures]
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    for trial, values in zip(made.trials, figures.values(), strict=True):
        if values is not None:
            keys = ("val/loss", "val/acc", "val/rewards_chosen_mean", "val/rewards_rejected_mean")
            final = dict(zip(keys, values, strict=True))
            write(made, trial.number, final={**final, "val/rewards_all_std": std, "val/pairs": pairs})
    return made


def write(made: Sweep, number: int, **result: Any) -> None:
    found = {"seconds": 142.4, "steps": 24, "pairs": {"train": 9, "validation": 4711}, **result}
    (made.trials[number].folder / "result.json").write_text(json.dumps(found))


def words(made: Sweep, *outcomes: TrialState) -> str:
    """What is printed, on one line."""
    return " ".join(ending_table.render(made, outcomes).split())


def test_the_whole_table(tmp_path: Path) -> None:
    lines = ending_table.render(sweep(tmp_path, {**AS_EXPECTED})).splitlines()
    assert lines[:5] == [
        "                                reward  log-ratio  log-ratio",
        "trial  beta    loss  accuracy   margin     chosen   rejected  seconds",
        "    1  0.05  0.6612     0.594  +0.1050     -3.600     -5.700      142",
        "    2   0.1  0.6400     0.610  +0.1900     -1.200     -3.100      142",
        "    0   0.5  0.5912     0.625  +0.7500     +0.300     -1.200      142",
    ]
    assert all(len(line) <= 80 for line in lines)
    rest = " ".join(" ".join(lines[5:]).split())
    assert "64 held-out pairs after 24 steps" in rest and "one seed per beta" in rest
    assert "not multiplied by beta" in rest
    assert "4.650 ± ≤ 0.062 nats per response at beta 0.05" in rest  # 0.5 / sqrt 64
    assert "falls as beta rises: SUPPORTED." in rest


def test_it_says_what_the_report_says(tmp_path: Path) -> None:
    made = report_sweep.finish(report_sweep.make(tmp_path / "s"))
    report = gather(made)
    printed, page = words(made), " ".join(markdown.render(report).split()).replace("\\", "")
    judgement = judge.judge(report)
    assert len(judgement.findings) == 5
    for it in judgement.findings:
        assert it.sentence in printed and it.sentence in page
    for sentence in (text.measured(report), text.rule(judgement)):
        assert sentence in printed and sentence in page


def test_untrained_trials_show_nothing(tmp_path: Path) -> None:
    """Four steps of warm-up: drifts of 0.0012 and 0.0011, each less certain than their difference is large."""
    figures = {0.05: (0.6931, 0.5, 0.0011, -0.0013), 0.5: (0.6930, 0.5, 0.0010, -0.0012)}
    printed = words(sweep(tmp_path, figures, pairs=32, std=0.004))
    assert "falls as beta rises: INCONCLUSIVE." in printed
    assert "SUPPORTED" not in printed


def test_the_pairs_are_those_that_were_validated(tmp_path: Path) -> None:
    """limit_val_batches=1 with batches of eight: eight pairs are eight, in the sentence and in the error."""
    printed = words(sweep(tmp_path, {0.05: (0.66, 0.75, -3.6, -5.7), 0.5: (0.6, 0.75, -1.0, -1.0)}, pairs=8))
    assert "Measured on 8 held-out pairs" in printed and "4711" not in printed
    assert "8 pairs" in printed and "4.650 ± ≤ 0.18 nats" in printed  # 0.5 / sqrt 8


def test_without_errors_nothing_can_be_told(tmp_path: Path) -> None:
    made = sweep(tmp_path, {**AS_EXPECTED})
    for number, values in enumerate(AS_EXPECTED.values()):
        keys = ("val/loss", "val/acc", "val/rewards_chosen_mean", "val/rewards_rejected_mean")
        write(made, number, final=dict(zip(keys, values, strict=True)))
    printed = words(made)
    assert "an unknown number of held-out pairs" in printed
    assert "INCONCLUSIVE" in printed and "of unknown standard error" in printed


def test_an_order_that_is_not_as_expected_is_reported(tmp_path: Path) -> None:
    figures = {0.05: (0.6, 0.6, -1.0, -1.0), 0.1: (0.6, 0.6, -1.0, 1.0), 0.5: (0.6, 0.6, 2.0, -3.0)}
    printed = words(sweep(tmp_path, figures, pairs=1000))
    assert "falls as beta rises: CONTRADICTED." in printed
    assert "beta 0.1 minus beta 0.5: -1.500" in printed


def test_failed_and_missing_trials_are_shown_with_their_reason(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.05: None, 0.1: AS_EXPECTED[0.1], 0.5: None})
    outcomes = [
        TrialState(trial=made.trials[0], state="FAILED", error="ValueError: x|y " + "z" * 200),
        TrialState(trial=made.trials[2], state="WAITING"),
    ]
    printed = ending_table.render(made, outcomes)
    assert "failed: ValueError: x|y zzz" in printed and "zzz…" in printed and "waiting\n" in printed
    assert "2 of 3 trials have no result." in printed and "nothing is known about" in " ".join(printed.split())
    assert ending_table.render(made).count("not started\n") == 2
    (made.trials[1].folder / "result.json").unlink()
    assert "No trial has a result." in ending_table.render(made)


def test_part_of_a_sweep_gives_no_verdict_on_the_whole(tmp_path: Path) -> None:
    printed = words(sweep(tmp_path, {**AS_EXPECTED, 0.7: None}))
    assert "falls as beta rises: INCONCLUSIVE." in printed and "nothing is known about beta 0.7 yet" in printed


def test_figures_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.1: None, 0.5: None})
    write(made, 0)
    write(made, 1, final={"val/loss": None, "val/acc": float("nan")}, pairs=None)
    lines = ending_table.render(made).splitlines()
    assert lines[2].split() == ["0", "0.1", "-", "-", "-", "-", "-", "142"]
    assert lines[3].split() == ["1", "0.5", "-", "-", "-", "-", "-", "142"]
    assert "an unknown number of held-out pairs" in words(made)


def test_rows_on_different_pairs_are_not_compared_silently(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.1: AS_EXPECTED[0.1], 0.5: AS_EXPECTED[0.5]})
    write(made, 1, final={"val/loss": 0.5, "val/pairs": 32})
    assert "cannot be compared directly" in words(made)


def test_trials_are_compared_where_they_differ_in_beta_alone(tmp_path: Path) -> None:
    lr = "++model.optim.lr="
    trials = [
        ([f"{BETA}{b}", f"{lr}{rate}"], {"model": {"dpo": {"ref_policy_kl_penalty": b}}})
        for rate in ("1e-4", "1e-3")
        for b in (0.1, 0.5)
    ]
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    for number, drift in enumerate((2.0, 1.0, 1.0, 2.0)):
        final = {"val/rewards_chosen_mean": drift, "val/rewards_rejected_mean": -drift}
        write(made, number, final={**final, "val/rewards_all_std": 1.0, "val/pairs": 400})
    first, second = judge.judge(gather(made)).theory
    assert first.about.startswith("model.optim.lr=1e-4") and first.outcome == "supported"
    assert second.about.startswith("model.optim.lr=1e-3") and second.outcome == "contradicted"
    assert "model.optim.lr=1e-3" in ending_table.render(made).splitlines()[3]


def test_a_trial_without_beta_has_no_margin(tmp_path: Path) -> None:
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=[(["x=1"], {})])
    write(made, 0, final={"val/loss": 0.5, "val/rewards_chosen_mean": 1.0, "val/rewards_rejected_mean": 0.0})
    report = gather(made)
    assert "margin" not in report.trials[0].estimates and judge.judge(report).findings == []
    assert ending_table.render(made).splitlines()[2].split()[1] == "-"


@pytest.mark.parametrize("key", ["cluster.environment.HF_TOKEN", "+cluster.environment.OTHER", "x.api_key"])
def test_no_secret_is_printed(tmp_path: Path, key: str) -> None:
    secret = "hf_SECRET1234567890abcdef"
    trials = [
        ([f"{BETA}{b}", f"{key}={secret}{b}"], {"model": {"dpo": {"ref_policy_kl_penalty": b}}}) for b in (0.1, 0.5)
    ]
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    printed = ending_table.render(made)
    assert secret not in printed and re.search(r"=\*\*\*", printed)
