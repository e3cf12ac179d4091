"""Each generation of Llama, Qwen2.5 and Mistral, saved by transformers 4 and by 5: NeMo's logits are those that the
transformers computed which saved it, within 1e-5; wrong frequencies fail the proof; trained, its export gives them too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import convert_checkpoint
from data_prep.models import nemo_config, nemo_to_hf, proof
from launcher.nemo import nemo_file
from tests.integration import generations
from tests.integration.test_export import LORA, check, sweep

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

__all__ = ["sweep"]  # a fixture
TOLERANCE = 1e-5
SAVED = sorted(generations.HERE.glob("*.json"))
ROOT = Path(convert_checkpoint.__file__).parent.parent

LOGITS = """
import json, sys
from pathlib import Path
from launcher.train.nemo_aligner import standins
standins.install()
from data_prep.models import proof_models
from tests.integration.generations import IDS, POSITIONS, TOKENS
proof_models._check_tokens = lambda *_: None  # the tokens are no text's
jobs, out = json.loads(sys.argv[1]), {}
for name, job in jobs.items():
    got, _ = proof_models.whole(job, IDS, lambda **_: None)
    out[name] = got[POSITIONS][:, TOKENS].tolist()
Path(sys.argv[2]).write_text(json.dumps(out))
"""


def write(saved: Path, folder: Path) -> Path:
    """The model of the file `saved`, as that transformers wrote it."""
    generations.write_folder(saved.stem.rpartition("_")[0], folder)
    config = json.loads(saved.read_text())["config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


@pytest.fixture(scope="module")
def prover() -> Iterator[proof.Prover]:
    with proof.Prover() as running:
        yield running


def test_every_generation_is_there_in_both_dresses() -> None:
    expected = {f"{name}_transformers{major}" for name in generations.MODELS for major in (4, 5)}
    assert {path.stem for path in SAVED} == expected


@pytest.mark.slow
def test_logits_are_those_of_the_transformers_that_saved_it(tmp_path: Path, prover: proof.Prover) -> None:
    jobs = {}
    for saved in SAVED:
        hf = write(saved, tmp_path / saved.stem)
        nemo = convert_checkpoint.convert(str(hf), tmp_path / f"{saved.stem}.nemo", prover=prover)
        record = nemo_file.read_record(nemo)
        assert record is not None
        assert record["proof"]["difference"] < TOLERANCE, saved.stem
        jobs[saved.stem] = {"hf": str(hf), "nemo": str(nemo), "precision": "32", "text": ""}
        back = nemo_to_hf.convert(nemo, tmp_path / f"{saved.stem}_back")
        assert json.loads((back / "config.json").read_text()).items() >= json.loads(saved.read_text())["config"].items()
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOGITS, json.dumps(jobs), str(tmp_path / "logits.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, got in json.loads((tmp_path / "logits.json").read_text()).items():
        expected = json.loads((generations.HERE / f"{name}.json").read_text())["logits"]
        furthest = max(
            abs(a - b) for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True)
        )
        print(f"{name}: furthest {furthest:.1e}")
        assert furthest < TOLERANCE, name


def base_of_llama_2(shape: Any, right: Any = nemo_config.rotary_config) -> dict[str, Any]:
    return {**right(shape), "rotary_base": 20000.0}


def nothing_scaled(shape: Any, right: Any = nemo_config.rotary_config) -> dict[str, Any]:
    kept: dict[str, Any] = {key: value for key, value in right(shape).items() if key != nemo_file.ROPE_SCALING}
    return kept | {"scale_positional_embedding": False}


def eight_for_32(shape: Any, right: Any = nemo_config.rotary_config) -> dict[str, Any]:
    return nothing_scaled(shape, right) | {"scale_positional_embedding": True}


WRONG = [(saved, base_of_llama_2) for saved in SAVED]
WRONG += [(saved, nothing_scaled) for saved in SAVED if saved.name.startswith(("llama31", "llama32", "llama33"))]
WRONG += [(saved, eight_for_32) for saved in SAVED if saved.name.startswith("llama32")]


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "wrong"), WRONG, ids=lambda value: getattr(value, "__name__", Path(str(value)).stem))
def test_wrong_frequencies_fail_the_proof(
    tmp_path: Path, prover: proof.Prover, monkeypatch: pytest.MonkeyPatch, saved: Path, wrong: Callable[..., Any]
) -> None:
    monkeypatch.setattr(nemo_config, "rotary_config", wrong)
    with pytest.raises(proof.Failed, match="logits differ from HF's by up to"):
        convert_checkpoint.convert(str(write(saved, tmp_path / "hf")), tmp_path / "made.nemo", prover=prover)


@pytest.mark.parametrize("name", ["qwen25", "mistral7b_v03"])
def test_a_trained_export(sweep: Callable[..., Any], pairs: dict[str, Path], tmp_path: Path, name: str) -> None:
    """The adapter on its base, the base without it, and the merged model: each token's log-probability is NeMo's."""
    hf = write(generations.HERE / f"{name}_transformers4.json", tmp_path / "hf")
    nemo = convert_checkpoint.convert(str(hf), tmp_path / "base.nemo", verify=False)
    check(sweep("tiny", nemo, pairs, **LORA), hf, pairs["validation"], tmp_path, TOLERANCE)
    merged = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert merged["model_type"] == generations.MODELS[name].get("model_type")
