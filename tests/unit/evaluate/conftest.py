"""The tiny model, as a .nemo and as a Hugging Face folder, for the tests of `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


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
