"""What a hypothesis expects: all of, any of, and against another trial; configs/experiment/beta_ablation.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.report import expectations, gather, judge
from launcher.report.expectations import Judged
from tests.unit.evaluate import simulated
from tests.unit.evaluate.simulated import SOUND

ABLATION = Path(__file__).parents[3] / "configs" / "experiment" / "beta_ablation.yaml"
SURE, UNSURE = Judged("a", "x", 1e-6, 1.0), Judged("b", "y", 0.4, 0.6)
AGAINST = Judged("c", "z", 1.0, 1e-6)


def verdicts(folder: Path, expect: dict[float, Any], **policies: Any) -> dict[float, judge.Verdict]:
    changed = {0.05: SOUND, 0.1: SOUND, 0.5: SOUND}
    changed |= {float(name.lstrip("b").replace("_", ".")): policy for name, policy in policies.items()}
    made = simulated.sweep(folder / "sweep", changed, expect)
    return {verdict.beta: verdict for verdict in judge.judge(gather.gather(made)).verdicts}  # type: ignore[misc]


def test_any_is_supported_by_one_and_contradicted_by_all():
    found = expectations._any([UNSURE, SURE])
    assert found.chance_for == pytest.approx(2e-6) and found.chance_against == 1.0, "corrected for two"
    assert expectations._any([AGAINST, AGAINST]).chance_against == 1e-6
    assert expectations._any([AGAINST, UNSURE]).chance_against == 0.6
    assert "any of: b, a" in found.about and "b: y; or a: x" in found.text


def test_together_is_as_sure_as_the_least_sure_and_contradicted_by_one():
    assert expectations._together([SURE, UNSURE]).chance_for == 0.4
    assert expectations._together([SURE, AGAINST]).chance_against == pytest.approx(2e-6)


def test_against_another_trial(tmp_path):
    expect = {0.5: {"win": "below beta 0.1", "following": "above beta 0.1"}}
    found = verdicts(tmp_path, expect, b0_5=replace(SOUND, good=0.0, follows=0.0))[0.5]
    assert [finding.outcome for finding in found.findings] == ["supported", "contradicted"]
    assert "at beta 0.5" in found.findings[0].text and "at beta 0.1" in found.findings[0].text
    assert "48 prompts, prompt by prompt" in found.findings[0].text


def test_any_of_several_signs(tmp_path):
    signs = {"any": [{"length_ratio": "highest"}, {"repeated": "highest"}, {"win": "below beta 0.1"}]}
    found = verdicts(tmp_path, {0.05: signs, 0.5: signs}, b0_05=simulated.FAULTS["length"])
    assert found[0.05].outcome == "supported" and len(found[0.05].findings) == 1
    assert found[0.5].outcome != "supported"


def test_all_and_entries_that_hold_together(tmp_path):
    both = {"any": [{"length_ratio": "highest", "repeated": "lowest"}, {"refusals": "highest"}]}
    twice = {"all": [{"win": "not lowest"}, {"win": "below beta 0.1"}]}
    found = verdicts(tmp_path, {0.05: both, 0.5: twice}, b0_05=simulated.FAULTS["refusing"])
    assert found[0.05].outcome == "supported"
    assert [finding.about for finding in found[0.5].findings] == ["win rate not lowest", "win rate below beta 0.1's"]


def test_a_beta_that_is_not_there(tmp_path):
    found = verdicts(tmp_path, {0.5: {"win": "below beta 0.2"}})[0.5]
    assert found.outcome == "inconclusive" and "nothing is known about beta 0.2" in found.findings[0].text


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"any": {"kl": "lowest"}}, "no list under `any`"),
        ({"any": []}, "no list under `any`"),
        ({"all": ["kl"]}, "must name a measure"),
        ({"any": [{"kl": "lowest"}, {"wins": "highest"}]}, "unknown measure 'wins'"),
        ({"win": "below 0.1"}, "below beta N"),
        ({"any": [{"loss": "below beta 0.1"}]}, "cannot rank betas by loss"),
    ],
)
def test_what_is_wrong_with_it(expect, said):
    assert said in expectations.problem(expect)


def test_the_ablations_own(tmp_path):
    """A policy at 0.05 that collapsed and one at 0.5 that learnt nothing; its KL on held-out pairs is made up."""
    hypotheses = yaml.safe_load(ABLATION.read_text())["experiment"]["hypotheses"]
    expect = {it["beta"]: it["expect"] for it in hypotheses}
    assert [expectations.problem(it) for it in expect.values()] == ["", "", ""]
    helpful = replace(SOUND, good=0.2)
    found = verdicts(tmp_path, expect, b0_05=simulated.FAULTS["collapse"], b0_1=helpful, b0_5=SOUND)
    assert found[0.1].outcome == "supported", found[0.1].findings
    words = {finding.about: finding.outcome for verdict in found.values() for finding in verdict.findings}
    assert words["win rate below beta 0.1's"] == "supported"
    assert next(word for about, word in words.items() if about.startswith("any of: length ratio")) == "supported"
