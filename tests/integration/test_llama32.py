"""Llama 3.2's factor 32, which NeMo 2.1 cannot be configured to, holds in training: for real NeMo-Aligner."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Ranks

pytest.importorskip("nemo")
pytestmark = pytest.mark.nemo

ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}


def save_frequencies() -> None:
    """In a rank: the rotary frequencies of the model that is about to be trained go into a file."""
    import torch

    from launcher.train.nemo_aligner import session

    add_adapters = session.init_peft

    def saving(model: Any, config: Any) -> None:
        torch.save(model.model.rotary_pos_emb.inv_freq, os.environ["FREQUENCIES"])
        add_adapters(model, config)

    session.init_peft = saving


def test_frequencies_in_training(train: Ranks, new_trial: Callable[..., Path], tmp_path: Path) -> None:
    import torch

    from data_prep import convert_checkpoint
    from data_prep.models import small_models
    from data_prep.models.proof_rope import frequencies

    hf = tmp_path / "llama32"
    hf.mkdir()
    small_models.write_random_llama(hf, rope_theta=None, rope_parameters=ROPE)
    nemo = convert_checkpoint.convert(str(hf), tmp_path / "llama32.nemo", verify=False)
    folder = new_trial(pretrained_checkpoint__restore_from_path=str(nemo), trainer__dpo__max_steps=1)
    trial = train(folder, change=save_frequencies, variables={"FREQUENCIES": tmp_path / "frequencies.pt"})
    assert trial.exit_codes == [0], trial.said()
    used = torch.load(tmp_path / "frequencies.pt")
    assert torch.allclose(used, frequencies(hf), rtol=1e-6, atol=0)
    unscaled = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    assert not torch.allclose(used, unscaled, rtol=1e-2, atol=0)
