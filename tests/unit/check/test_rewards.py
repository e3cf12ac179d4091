"""The warning about RPO losses on pairs without rewards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.check import rewards
from launcher.trial_config.config import TrialConfig
from tests.unit.conftest import changed
from tests.unit.prepare_tools import Prepare, many, write

Make = Callable[..., TrialConfig]


@pytest.fixture
def config(composed: Any) -> Make:
    """config(file of training pairs, loss) -> a trial."""

    def build(train: Path, loss: str = "rpo_bwd_kl") -> TrialConfig:
        changes = {"model.dpo.preference_loss": loss, "model.data.data_prefix.train": [str(train)]}
        return changed(composed("model=tiny")[0], changes)

    return build


def rewarded(number: int, missing: int = 0) -> list[dict[str, Any]]:
    rows = [{"prompt": f"question {n}", "chosen_response": "yes", "rejected_response": "no"} for n in range(number)]
    return [{**row, "chosen_reward": n, "rejected_reward": -1} for n, row in enumerate(rows[missing:])] + rows[:missing]


@pytest.mark.parametrize("loss", ["rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"])
def test_rpo_without_rewards_is_warned_of(config: Make, prepare: Prepare, tmp_path: Path, loss: str) -> None:
    (warning,) = rewards.warnings(config(prepare(write(tmp_path / "a.jsonl", many(100))) / "train.jsonl", loss))
    assert "no row has" in warning.why
    assert "chosen_reward" in warning.remedy
    folder = prepare(write(tmp_path / "b.jsonl", rewarded(100, missing=30)), out="part")
    (warning,) = rewards.warnings(config(folder / "train.jsonl", loss))
    assert "rows have" in warning.why
    assert not rewards.warnings(
        config(prepare(write(tmp_path / "c.jsonl", rewarded(100)), out="whole") / "train.jsonl", loss)
    )


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_other_losses_need_no_rewards(config: Make, prepare: Prepare, tmp_path: Path, loss: str) -> None:
    folder = prepare(write(tmp_path / "pairs.jsonl", many(100)))
    assert not rewards.warnings(config(folder / "train.jsonl", loss))


def test_a_file_without_a_record_is_looked_into(config: Make, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen_response": "a", "rejected_response": "b"}
    assert rewards.warnings(config(write(tmp_path / "none.jsonl", [row] * 9)))
    defaults = {**row, "chosen_reward": 1.0, "rejected_reward": 0.0}
    assert rewards.warnings(config(write(tmp_path / "defaults.jsonl", [defaults] * 9)))
    assert not rewards.warnings(config(write(tmp_path / "own.jsonl", [defaults, {**defaults, "chosen_reward": 3}])))
    (tmp_path / "dataset.json").write_text(json.dumps({"files": {"own.jsonl": {"bytes": 1}}}))  # about another file
    assert not rewards.warnings(config(tmp_path / "own.jsonl"))
    assert not rewards.warnings(config(tmp_path / "gone.jsonl"))
