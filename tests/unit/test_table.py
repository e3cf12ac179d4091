"""The comparison says what the results say, and says when they do not say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.report import ending_table
from launcher.sweep.folder import Outcome, Sweep

# beta: (validation loss, accuracy, log-ratio of chosen, of rejected)
AS_EXPECTED = {0.5: (0.5912, 0.625, 0.3, -1.2), 0.05: (0.6612, 0.59375, -3.6, -5.7), 0.1: (0.64, 0.61, -1.2, -3.1)}


def sweep(tmp_path: Path, figures: dict[float, tuple[float, ...] | None], *more: str, pairs: int = 64) -> Sweep:
    trials = [
        ([f"++model.dpo.ref_policy_kl_penalty={beta}", *more], {"model": {"dpo": {"ref_policy_kl_penalty": beta}}})
        for beta in figures
    ]
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    for trial, values in zip(made.trials, figures.values(), strict=True):
        if values is not None:
            keys = ("val/loss", "val/acc", "val/rewards_chosen_mean", "val/rewards_rejected_mean")
            write(
                made, trial.number, final=dict(zip(keys, values, strict=True)), pairs={"train": 9, "validation": pairs}
            )
    return made


def write(made: Sweep, number: int, **result: Any) -> None:
    (made.trials[number].folder / "result.json").write_text(json.dumps({"seconds": 142.4, "steps": 24, **result}))


def test_the_whole_table(tmp_path: Path) -> None:
    assert (
        ending_table.render(sweep(tmp_path, {**AS_EXPECTED}))
        == """\
             validation             reward  log-ratio*  log-ratio*
trial  beta        loss  accuracy   margin      chosen    rejected  seconds
    1  0.05      0.6612     0.594  +0.1050      -3.600      -5.700      142
    2   0.1      0.6400     0.610  +0.1900      -1.200      -3.100      142
    0   0.5      0.5912     0.625  +0.7500      +0.300      -1.200      142
* log-ratio: mean log-probability ratio of a response to the reference policy,
  in nats, not multiplied by beta
Measured on 64 held-out pairs after 24 steps, one seed a beta. Standard error of
  an accuracy: up to 0.060.
Drift (mean size of the two log-ratios, nats a response): 4.650 at beta 0.05,
  2.150 at beta 0.1, 0.750 at beta 0.5. It falls as beta rises, as DPO's theory
  says."""
    )


def test_markdown_holds_the_same(tmp_path: Path) -> None:
    text = ending_table.markdown(sweep(tmp_path, {**AS_EXPECTED}))
    assert text.splitlines()[0].count("|") == text.splitlines()[2].count("|") == 9
    assert "| 1 | 0.05 | 0.6612 | 0.594 | +0.1050 | -3.600 | -5.700 | 142 |" in text
    assert "It falls as beta rises" in text and "\n\nlog-ratio: mean" in text


def test_an_order_that_is_not_as_expected_is_said_so(tmp_path: Path) -> None:
    found = ending_table.rows(
        sweep(tmp_path, {0.05: (0.6, 0.6, -1.0, -1.0), 0.1: (0.6, 0.6, -1.0, 1.0), 0.5: (0.6, 0.6, 2.0, -3.0)})
    )
    text = ending_table.verdict(found)
    assert "does NOT fall" in text and "as DPO's theory says." not in text
    assert "beta 0.1 drifts as far as 0.05, beta 0.5 drifts further than 0.1" in text


def test_failed_and_missing_trials_are_shown_with_their_reason(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.05: None, 0.1: AS_EXPECTED[0.1], 0.5: None})
    outcomes = [Outcome(made.trials[0], "FAILED", "ValueError: x|y " + "z" * 200), Outcome(made.trials[2], "WAITING")]
    text = ending_table.render(made, outcomes)
    assert "FAILED: ValueError: x|y zzz" in text and "zzz…" in text and "WAITING\n" in text
    assert "2 of 3 trials have no result." in text and "cannot be compared" in text
    assert "x\\|y" in ending_table.markdown(made, outcomes)
    assert ending_table.render(made).count("no result\n") == 2
    (made.trials[1].folder / "result.json").unlink()
    assert "No trial has a result." in ending_table.render(made)


def test_part_of_a_sweep_gives_part_of_a_verdict(tmp_path: Path) -> None:
    made = sweep(tmp_path, {**AS_EXPECTED, 0.7: None})
    assert ending_table.verdict(ending_table.rows(made)).endswith("as DPO's theory says. Nothing is known of beta 0.7.")


def test_figures_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.1: None, 0.5: None})
    write(made, 0)
    write(made, 1, final={"val/loss": None, "val/acc": float("nan")}, pairs=None)
    lines = ending_table.render(made).splitlines()
    assert lines[2].split() == ["0", "0.1", "-", "-", "-", "-", "-", "142"]
    assert lines[3].split() == ["1", "0.5", "-", "nan", "-", "-", "-", "142"]
    assert "an unknown number of held-out pairs" in ending_table.render(made)


def test_rows_on_different_pairs_are_not_compared_silently(tmp_path: Path) -> None:
    made = sweep(tmp_path, {0.1: AS_EXPECTED[0.1], 0.5: AS_EXPECTED[0.5]})
    write(made, 1, final={}, pairs={"validation": 32})
    assert "cannot be compared as they stand" in " ".join(ending_table.render(made).split())


def test_trials_are_compared_where_they_differ_in_beta_alone(tmp_path: Path) -> None:
    beta, lr = "++model.dpo.ref_policy_kl_penalty=", "++model.optim.lr="
    trials = [
        ([f"{beta}{b}", f"{lr}{rate}"], {"model": {"dpo": {"ref_policy_kl_penalty": b}}})
        for rate in ("1e-4", "1e-3")
        for b in (0.1, 0.5)
    ]
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=trials)
    for number, drift in enumerate((2.0, 1.0, 1.0, 2.0)):
        final = {"val/rewards_chosen_mean": drift, "val/rewards_rejected_mean": -drift}
        write(made, number, final=final)
    first, second = ending_table.verdicts(ending_table.rows(made))
    assert first.startswith("model.optim.lr=1e-4: Drift") and "It falls" in first
    assert second.startswith("model.optim.lr=1e-3: Drift") and "NOT fall" in second
    assert "model.optim.lr=1e-3" in ending_table.render(made).splitlines()[3]


@pytest.mark.parametrize("beta", [None])
def test_a_trial_without_beta_has_no_margin(tmp_path: Path, beta: None) -> None:
    made = Sweep.create(tmp_path / "s", command=[], experiment={}, trials=[(["x=1"], {})])
    write(made, 0, final={"val/loss": 0.5, "val/rewards_chosen_mean": 1.0, "val/rewards_rejected_mean": 0.0})
    assert ending_table.rows(made)[0].margin is beta and ending_table.verdicts(ending_table.rows(made)) == []
    assert ending_table.render(made).splitlines()[2].split()[1] == "-"


def test_all_right_on_a_few_pairs_is_not_certain() -> None:
    assert ending_table.standard_error(1.0, 32) == pytest.approx(0.0382, abs=1e-4)  # (32 + 2) / (32 + 4) = 0.9444
