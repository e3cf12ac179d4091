"""Exact KL, log-ratios and greedy samples of a trained trial, against transformers and peft; on one and two ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

BETA = 0.1


def evaluate_instead() -> None:
    """The ranks evaluate the trial, which is done, in many small blocks of vocabulary and of tokens."""
    from launcher.train import run
    from launcher.train.nemo_aligner import divergence, evaluate

    divergence.BLOCK, divergence.TOKENS = 100, 37
    run.run_trial = evaluate.evaluate_trial


def evaluate_and_compare_with_whole_logits() -> None:
    """The same, each comparison held against a plain log-softmax over all ranks' vocabulary, in float64."""
    import torch
    from nemo_aligner.utils import parallel_state

    from launcher.train.nemo_aligner import divergence

    evaluate_instead()
    blockwise = divergence.compare

    def checked(policy, base, labels, weights):
        found = blockwise(policy, base, labels, weights)
        shards = [torch.empty_like(weights[0]) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
        assert len(shards) == 2
        torch.distributed.all_gather(shards, weights[0], group=parallel_state.get_tensor_model_parallel_group())
        p, q = ((states.double() @ torch.cat(shards).double().T).log_softmax(-1) for states in (policy, base))
        torch.testing.assert_close(found.kl.double(), (p.exp() * (p - q)).sum(-1), atol=2e-5, rtol=1e-4)
        ratio = (p - q).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(found.log_ratio.double(), ratio, atol=2e-5, rtol=1e-4)
        return found

    divergence.compare = checked


@pytest.fixture(scope="module")
def by_transformers(tiny_hf, pairs):
    """by_transformers(adapters) -> (PER_PAIR's columns, the policy's and the reference's greedy tokens a prompt)."""
    import torch
    from transformers import AutoTokenizer

    from tests.integration import lora_reference

    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)

    def greedy(policy, tokens: list[int], length: int) -> str:
        begin = len(tokens)
        for _ in range(length):
            token = int(policy(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens = [*tokens, token]
            if token == tokenizer.eos_token_id:
                break
        return tokenizer.decode([token for token in tokens[begin:] if token != tokenizer.eos_token_id])

    @torch.no_grad()
    def compute(adapters: Path, length: int):
        policy = lora_reference.with_adapters(tiny_hf, adapters, rank=8, alpha=12)
        columns: dict[str, list[float]] = {}
        answers = []
        for row in map(json.loads, pairs["validation"].read_text().splitlines()):
            prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
            for kind in ("chosen", "rejected"):
                text = row["prompt"] + row[f"{kind}_response"]
                tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
                adapted = policy(tokens).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                with policy.disable_adapter():
                    base = policy(tokens).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                ratio = (adapted - base).gather(1, tokens[0, len(prompt) :, None])
                columns.setdefault(f"kl_{kind}", []).append(float((adapted.exp() * (adapted - base)).sum()))
                columns.setdefault(f"log_ratio_{kind}", []).append(float(ratio.sum()))
                columns.setdefault(f"tokens_{kind}", []).append(len(ratio))
            if len(answers) < 2:
                own = greedy(policy, prompt, length)
                with policy.disable_adapter():
                    answers.append((own, greedy(policy, prompt, length)))
        return columns, answers

    return compute


def test_kl_and_samples_equal_transformers_and_peft(train, new_trial, by_transformers):
    """Evaluated by itself, after training: the trained adapters are what is loaded, the reference is without them."""
    asked = {"kl_pairs": 6, "samples": 2, "sample_tokens": 8}
    tuning = {"adapter_dim": 8, "alpha": 12, "adapter_dropout": 0.1}
    overrides = {f"model__peft__lora_tuning__{key}": value for key, value in tuning.items()}
    folder = new_trial(**overrides, evaluation=asked)
    before = train(folder).result
    trial = train(folder, change=evaluate_instead)
    assert trial.exit_codes == [0], trial.said()
    result = trial.result
    assert {key: result[key] for key in before if key != "evaluation"} == {
        key: before[key] for key in before if key != "evaluation"
    }
    found = result["evaluation"]
    expected, answers = by_transformers(Path(before["nemo"]), 8)
    assert found["pairs"] == 6
    for column, values in expected.items():
        assert found["per_pair"][column] == pytest.approx(values[:6], abs=2e-3, rel=1e-3), column
    total = sum(expected["kl_chosen"][:6]) + sum(expected["kl_rejected"][:6])
    tokens = sum(expected["tokens_chosen"][:6]) + sum(expected["tokens_rejected"][:6])
    assert found["tokens"] == tokens
    assert total / tokens > 0.01, "too little was learnt for the comparison to mean anything"
    assert found["kl_per_token"]["mean"] == pytest.approx(total / tokens, rel=1e-3)
    assert [(one["policy"].strip(), one["reference"].strip()) for one in found["samples"]] == [
        (own.strip(), base.strip()) for own, base in answers
    ]
    assert answers[0][0] != answers[0][1]


def on_a_cpu_with_bf16() -> None:
    from launcher.train import device

    device.cpu_has_bf16 = lambda: True


def evaluate_on_a_cpu_without() -> None:
    from launcher.train import device

    evaluate_instead()
    device.cpu_has_bf16 = lambda: False


def test_it_is_computed_in_the_precision_of_the_training(train, new_trial):
    """`auto` means bf16 where the trial was trained, and fp32 where it is evaluated again."""
    asked = {"kl_pairs": 4, "samples": 0, "sample_tokens": 0}
    folder = new_trial(trainer__precision="auto", evaluation=asked)
    before = train(folder, change=on_a_cpu_with_bf16).result
    assert before["precision"] == "bf16"
    after = train(folder, change=evaluate_on_a_cpu_without)
    assert after.exit_codes == [0], after.said()
    for column, values in before["evaluation"]["per_pair"].items():  # other blocks of the vocabulary are added up
        assert after.result["evaluation"]["per_pair"][column] == pytest.approx(values, abs=2e-4), column


def test_log_ratios_are_those_that_nemo_logged(train, new_trial):
    folder = new_trial(evaluation={"kl_pairs": 8, "samples": 0, "sample_tokens": 0})
    final = train(folder).result["final"]
    pairs = train(folder, change=evaluate_instead).result["evaluation"]["per_pair"]
    chosen, rejected = pairs["log_ratio_chosen"], pairs["log_ratio_rejected"]
    assert len(chosen) == 8
    assert sum(chosen) / 8 == pytest.approx(final["val/rewards_chosen_mean"], abs=1e-3)
    assert sum(rejected) / 8 == pytest.approx(final["val/rewards_rejected_mean"], abs=1e-3)
    loss = sum(math.log1p(math.exp(-BETA * (c - r))) for c, r in zip(chosen, rejected, strict=True)) / 8
    assert loss == pytest.approx(final["val/loss"], abs=1e-3)


def test_tensor_parallel_ranks_join_their_shares_of_the_vocabulary(train, new_trial):
    asked = {"kl_pairs": 8, "samples": 3, "sample_tokens": 4}
    folder = new_trial(trainer__devices=2, model__tensor_model_parallel_size=2, evaluation=asked)
    final = train(folder, ranks=2).result["final"]
    trial = train(folder, ranks=2, change=evaluate_and_compare_with_whole_logits)
    assert trial.exit_codes == [0, 0], trial.said()
    found = trial.result["evaluation"]
    mean = sum(found["per_pair"]["log_ratio_chosen"]) / 8
    assert mean == pytest.approx(final["val/rewards_chosen_mean"], abs=1e-3)
    assert found["kl_per_token"]["mean"] > 0.01
    assert len(found["samples"]) == 3


def test_what_cannot_be_evaluated_is_refused(new_trial, tmp_path):
    from launcher.findings import Refused
    from launcher.train.nemo_aligner import evaluate

    folder = new_trial()
    with pytest.raises(Refused, match=r"has no result\.json"):
        evaluate.check(folder)
    (folder / "result.json").write_text(json.dumps({"beta": 0.1, "nemo": str(tmp_path / "gone.nemo")}))
    with pytest.raises(Refused, match="the adapters are gone"):
        evaluate.check(folder)


def test_an_unsupported_set_of_versions_is_refused(new_trial, monkeypatch):
    """NeMo-Aligner 0.6 evaluates without an error, at the wrong tokens."""
    from launcher.findings import Refused
    from launcher.nemo import versions
    from launcher.train.nemo_aligner import evaluate

    there = {"nemo-aligner": "0.6.0", "nemo_toolkit": "2.1.0", "megatron-core": "0.10.0"}
    monkeypatch.setattr(versions, "installed", lambda: there)
    with pytest.raises(Refused, match=r"nemo-aligner 0\.6\.0 does not work"):
        evaluate.evaluate_trial(new_trial())


def test_parallelism_that_it_does_not_know_is_said():
    from omegaconf import OmegaConf

    from launcher.train.nemo_aligner.evaluate import unsupported_reason

    config = OmegaConf.create({"pipeline_model_parallel_size": 2, "data": {"data_impl": "jsonl"}})
    assert unsupported_reason(config).startswith("model.pipeline_model_parallel_size=2")
    config = OmegaConf.create({"tensor_model_parallel_size": 2, "data": {"data_impl": "jsonl"}})
    assert unsupported_reason(config) == ""
    config.data.data_impl = "packed_jsonl"
    assert "unpacked pairs only" in unsupported_reason(config)
