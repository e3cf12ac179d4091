"""The tiny model, as a .nemo and as a Hugging Face folder, for the tests of `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.sweep.folder import Sweep
from tests.integration.minimal_trial import write_pairs
from tests.unit.evaluate.evaluated import ASKED


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """tiny.nemo, and its Hugging Face folder hf/tiny."""
    from data_prep import convert_checkpoint
    from data_prep.models import small_models

    folder = tmp_path_factory.mktemp("models")
    small_models.ensure("tiny", folder / "hf")
    convert_checkpoint.convert(str(folder / "hf" / "tiny"), folder / "tiny.nemo", verify=False)
    return folder


@pytest.fixture(scope="module")
def tiny(models) -> tuple[Any, Any]:
    """(model, tokenizer), by transformers."""
    import transformers

    folder = models / "hf" / "tiny"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def sweep(tmp_path, models) -> Sweep:
    """Three trials of the tiny model, of which 0 and 1 are done."""
    from tests.unit.export_sweep import config, finish

    (tmp_path / "data").mkdir()
    files = {split: write_pairs(tmp_path / "data" / f"{split}.jsonl", 6) for split in ("train", "validation", "test")}
    trials = []
    for beta in (0.05, 0.1, 0.5):
        one = config(models / "tiny.nemo", beta, files["train"])
        one["model"]["data"]["data_prefix"] = {split: [str(path)] for split, path in files.items()}
        one |= {"evaluation": {"kl_pairs": 4, "answers": ASKED}, "paths": {"cache": str(tmp_path / "cache")}}
        trials.append(([f"model.dpo.ref_policy_kl_penalty={beta}"], one))
    made = Sweep.create(tmp_path / "sweep", command=["main.py", "-m"], experiment={"name": "t"}, trials=trials)
    finish(made, 0)
    finish(made, 1)
    return made
