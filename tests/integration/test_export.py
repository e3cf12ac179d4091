"""Exported trials against NeMo-Aligner: each token of held-out pairs has the same log-probability, to 1e-4 in fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import __main__ as command
from launcher.sweep.folder import Sweep
from tests.benchmarks.convert import same_bits
from tests.integration.minimal_trial import write_trial

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

TOLERANCE = 1e-4


def keep_log_probabilities() -> None:
    """At the end of the training, NeMo-Aligner's own log-probabilities of each held-out pair, policy and reference."""
    from launcher.train.nemo_aligner import evaluate

    usual = evaluate.evaluate

    def and_keep(model: Any, config: Any, pairs: Any, progress: Any) -> Any:
        import torch
        from nemo_aligner.algorithms.dpo import dpo_custom_collate

        model.prepare_for_validation_step()
        rows = []
        for index in range(len(pairs)):
            batch = dpo_custom_collate([pairs[index]], eos_id=model.tokenizer.eos_id)
            labels = torch.cat([batch["chosen_labels"], batch["rejected_labels"]]) > -1
            both = {"policy": model.get_logprob_batch(batch), "reference": model.get_ref_policy_logprobs(batch)}
            assert both["policy"].shape == labels.shape
            rows.append({name: [v[m].tolist() for v, m in zip(got, labels, strict=True)] for name, got in both.items()})
        model.finish_validation_step()
        if torch.distributed.get_rank() == 0:
            Path(config.exp_manager.explicit_log_dir, "log_probabilities.json").write_text(json.dumps(rows))
        return usual(model, config, pairs, progress)

    evaluate.evaluate = and_keep


@pytest.fixture
def sweep(train, tmp_path) -> Callable[..., Sweep]:
    """sweep(model, nemo, pairs, ranks=1, **overrides) -> a sweep of one trial, trained; dots written as `__`."""

    def make(model: str, nemo: Path, pairs: dict[str, Path], ranks: int = 1, **overrides: Any) -> Sweep:
        from omegaconf import OmegaConf

        changes = {"trainer.dpo.max_steps": 4, "trainer.dpo.val_check_interval": 4, "trainer.dpo.save_interval": 4}
        changes |= {"evaluation": {"kl_pairs": 2, "samples": 0}, "model.optim.lr": 2e-3, "trainer.devices": ranks}
        changes |= {key.replace("__", "."): value for key, value in overrides.items()}
        config = OmegaConf.load(write_trial(tmp_path / "config", model, nemo, pairs, changes) / "config.yaml")
        trials = [(["model.dpo.ref_policy_kl_penalty=0.1"], OmegaConf.to_container(config))]
        made = Sweep.create(tmp_path / "sweep", command=["main.py"], experiment={"name": "t"}, trials=trials)
        trial = train(made.trials[0].folder, ranks=ranks, change=keep_log_probabilities)
        assert trial.exit_codes == [0] * ranks, trial.said()
        return made

    return make


def furthest(sweep: Sweep, model: Any, tokenizer: Any, pairs: Path, kind: str = "policy") -> float:
    """The largest difference of a token's log-probability between NeMo's and `model`'s."""
    import torch

    kept = json.loads((sweep.trials[0].folder / "results" / "log_probabilities.json").read_text())
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    differences = []
    for row, log_probabilities in zip(rows, kept, strict=True):
        start = len(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
        for side, expected in zip(("chosen_response", "rejected_response"), log_probabilities[kind], strict=True):
            tokens = tokenizer(row["prompt"] + row[side], add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(tokens).logits[0, start - 1 : -1]
            got = logits.log_softmax(-1).gather(-1, tokens[0, start:, None]).squeeze(-1)
            assert len(got) == len(expected)
            differences.append(float((got - torch.tensor(expected)).abs().max()))
    return max(differences)


def learnt(sweep: Sweep) -> float:
    kept = json.loads((sweep.trials[0].folder / "results" / "log_probabilities.json").read_text())
    return max(abs(a - b) for row in kept for a, b in zip(row["policy"][0], row["reference"][0], strict=True))


def with_peft(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).eval()


def check(sweep: Sweep, base: Path, held_out: Path, out: Path, tolerance: float = TOLERANCE) -> None:
    """The adapter on its base, the adapter switched off, and the merged model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert command.main(["export", str(sweep.folder), "--out", str(out / "adapter"), "--base", str(base)]) == 0
    assert command.main(["export", str(sweep.folder), "--best", "--merge", "--out", str(out / "merged")]) == 0
    assert learnt(sweep) > 0.05, "too little was learnt for the comparison to mean anything"
    tokenizer = AutoTokenizer.from_pretrained(out / "adapter")
    model = with_peft(base, out / "adapter")
    found = {"adapter": furthest(sweep, model, tokenizer, held_out)}
    with model.disable_adapter():
        found["off"] = furthest(sweep, model, tokenizer, held_out, "reference")
    merged = AutoModelForCausalLM.from_pretrained(out / "merged").eval()
    found["merged"] = furthest(sweep, merged, AutoTokenizer.from_pretrained(out / "merged"), held_out)
    print(found)
    assert max(found.values()) < tolerance, found


LORA = {"model__peft__lora_tuning__adapter_dim": 8, "model__peft__lora_tuning__alpha": 20}


def test_tiny(sweep, tiny_hf, tiny_nemo, pairs, tmp_path):
    """Two query heads a key head; alpha other than the rank; dropout in training, which an export must not have."""
    made = sweep("tiny", tiny_nemo, pairs, **LORA, model__peft__lora_tuning__adapter_dropout=0.1)
    check(made, tiny_hf, pairs["validation"], tmp_path)


def test_tensor_parallel_trial_with_adapters_on_some_layers(sweep, tiny_hf, tiny_nemo, pairs, tmp_path):
    parallel = {"model__tensor_model_parallel_size": 2, "model__peft__lora_tuning__layer_selection": [2]}
    made = sweep("tiny", tiny_nemo, pairs, ranks=2, **LORA, **parallel)
    check(made, tiny_hf, pairs["validation"], tmp_path)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]


def test_pipeline_parallel_trial(sweep, tiny_hf, tiny_nemo, pairs, tmp_path):
    """A stage counts its layers from 0."""
    made = sweep("tiny", tiny_nemo, pairs, ranks=2, **LORA, model__pipeline_model_parallel_size=2)
    check(made, tiny_hf, pairs["validation"], tmp_path)


@pytest.mark.slow
def test_smollm2(sweep, pairs, tmp_path, monkeypatch):
    """A real model: converted and proved layer by layer, there and back, trained, exported."""
    from data_prep import convert_checkpoint
    from data_prep.models import nemo_to_hf
    from launcher.nemo import nemo_file

    hf, nemo = tmp_path / "hf" / "smollm2_135m", tmp_path / "smollm2_135m.nemo"
    monkeypatch.setattr(convert_checkpoint, "WHOLE", 0)
    convert_checkpoint.convert("smollm2_135m", nemo)
    print(nemo_file.read_record(nemo))
    assert same_bits(hf, nemo_to_hf.convert(nemo, tmp_path / "back"))
    batch = {"model__micro_batch_size": 1, "model__global_batch_size": 4}
    made = sweep("smollm2_135m", nemo, pairs, **LORA, **batch, model__optim__lr=1e-3)
    check(made, hf, pairs["validation"], tmp_path)
