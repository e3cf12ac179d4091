"""Two layers of Llama-3-8B's true sizes, one step of DPO in bf16 on a pair of 2,048 tokens: loss and gradients of
NeMo-Aligner's LoRA on all seven projections against plain transformers and peft.

Both compute in bf16 and round differently, so that neither is the other's measure. The measure is the same model in
fp32 with the same weights: NeMo-Aligner has to be as near to it as transformers in bf16 is.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_prep import convert_checkpoint
from tests.benchmarks.convert import write_llama
from tests.benchmarks.llama3_8b import lacking_memory
from tests.integration.minimal_trial import write_long_pairs, write_pairs

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

RANK, ALPHA, BETA = 32, 64, 0.1
TINY = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY |= {"vocab_size": 1024, "initializer_range": 0.1}
#: How much further from fp32 than transformers in bf16 NeMo-Aligner may be: they round at different places.
AS_NEAR = 2.0


def recorded() -> None:
    """In a rank: random adapters before the first step; then loss, adapters and their gradients go into a file."""
    import torch

    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    step = PreferenceTrainer.train_single_step

    def add(total: torch.Tensor, gradient: torch.Tensor) -> None:
        total.add_(gradient.float())

    def recording(self: Any, batch: Any) -> Any:
        adapters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        generator = torch.Generator().manual_seed(5)
        gradients: dict[str, torch.Tensor] = {}
        for name, parameter in adapters.items():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            gradients[name] = torch.zeros(parameter.shape)
            parameter.register_hook(partial(add, gradients[name]))
        weights = {name: parameter.detach().clone() for name, parameter in adapters.items()}
        loss, metrics = step(self, batch)
        tokens = {side: batch[f"{side}"] for side in ("chosen", "rejected")}
        kept = {"loss": loss, "weights": weights, "gradients": gradients, "tokens": tokens}
        torch.save(kept, os.environ["RECORDED"])
        return loss, metrics

    PreferenceTrainer.train_single_step = recording


def loss_and_gradients(
    folder: Path, row: dict[str, Any], weights: dict[str, Any], precision: Any
) -> tuple[float, dict]:
    """By transformers and peft; gradients under NeMo's names of the fused matrices."""
    import torch
    from transformers import AutoTokenizer

    from tests.integration import lora_reference

    policy = lora_reference.adapted(folder, weights, RANK, ALPHA, precision)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = len(tokenizer(row["prompt"], add_special_tokens=False).input_ids)
    causal = policy.base_model.model

    def log_probability(side: str) -> torch.Tensor:
        tokens = tokenizer(row["prompt"] + row[side], add_special_tokens=False, return_tensors="pt").input_ids
        states = causal.model(tokens[:, :-1]).last_hidden_state[:, start - 1 :]
        each = causal.lm_head(states).float().log_softmax(-1)
        return each.gather(-1, tokens[:, start:, None]).sum()

    sides = {"chosen_response": 1.0, "rejected_response": -1.0}
    with torch.no_grad():
        margin = sum(sign * log_probability(side) for side, sign in sides.items())
        with policy.disable_adapter():
            margin -= sum(sign * log_probability(side) for side, sign in sides.items())
    # The loss's derivative by each log-probability is known by now: one graph at a time is in memory, not two.
    for side, sign in sides.items():
        (-BETA * torch.sigmoid(-BETA * margin) * sign * log_probability(side)).backward()
    return float(-torch.nn.functional.logsigmoid(BETA * margin)), lora_reference.fused_gradients(policy)


@pytest.mark.parametrize(
    ("shape", "length", "response"),
    [(TINY, 256, 64), pytest.param({}, 2048, 256, marks=pytest.mark.slow)],
    ids=["tiny sizes", "true sizes"],
)
def test_loss_and_gradients_are_as_near_to_fp32_as_those_of_transformers(
    train, new_trial, tmp_path, shape, length, response
):
    import torch
    from transformers import AutoTokenizer

    if not shape and (why := lacking_memory(14)):
        pytest.skip(why)
    hf = tmp_path / "llama"
    write_llama(hf, 2, **shape)
    nemo = convert_checkpoint.convert(str(hf), tmp_path / "base", packed=False, verify=False)
    (row,) = write_long_pairs(tmp_path / "train.jsonl", AutoTokenizer.from_pretrained(hf), [length], response)
    held_out = [str(write_pairs(tmp_path / "held_out.jsonl", 1))]
    keys = {
        "pretrained_checkpoint__restore_from_path": str(nemo),
        "trainer__precision": "bf16",
        "trainer__dpo__max_steps": 1,
        "model__global_batch_size": 1,
        "model__micro_batch_size": 1,
        "model__encoder_seq_length": length,
        "model__data__data_prefix": {
            "train": [str(tmp_path / "train.jsonl")],
            "validation": held_out,
            "test": held_out,
        },
        "model__dpo__ref_policy_kl_penalty": BETA,
        "model__peft__lora_tuning__adapter_dim": RANK,
        "model__peft__lora_tuning__alpha": ALPHA,
        "evaluation__kl_pairs": 0,
        "evaluation__samples": 0,
    }
    done = train(new_trial(**keys), change=recorded, variables={"RECORDED": tmp_path / "recorded.pt"})
    assert done.exit_codes == [0], done.said()
    kept = torch.load(tmp_path / "recorded.pt", weights_only=True)
    assert kept["tokens"]["chosen"].shape == kept["tokens"]["rejected"].shape == (1, length)
    exact_loss, exact = loss_and_gradients(hf, row, kept["weights"], torch.float32)
    rounded_loss, rounded = loss_and_gradients(hf, row, kept["weights"], torch.bfloat16)
    print(f"\nloss: fp32 {exact_loss:.5f}, transformers bf16 {rounded_loss:.5f}, NeMo-Aligner bf16 {kept['loss']:.5f}")
    assert abs(exact_loss - 0.6931) > 0.01, "the adapters change too little for the comparison to mean anything"
    gradients = {name.rpartition("decoder.")[2]: value for name, value in kept["gradients"].items()}
    assert {f"decoder.{name}" for name in gradients} == exact.keys()
    furthest = {"transformers": 0.0, "NeMo-Aligner": 0.0, "between the two": 0.0}
    for name, wanted in exact.items():
        ours, theirs = gradients[name.removeprefix("decoder.")], rounded[name]
        size = wanted.norm()
        shares = {
            "transformers": float((theirs - wanted).norm() / size),
            "NeMo-Aligner": float((ours - wanted).norm() / size),
            "between the two": float((ours - theirs).norm() / size),
        }
        print(f"{name:75} norm {size:.2e}, " + ", ".join(f"{who} {share:.4f}" for who, share in shares.items()))
        furthest = {who: max(furthest[who], share) for who, share in shares.items()}
    print(f"largest differences of a matrix's gradient, relative to fp32's norm: {furthest}")
    assert furthest["NeMo-Aligner"] < AS_NEAR * furthest["transformers"]
    assert abs(kept["loss"] - exact_loss) < max(AS_NEAR * abs(rounded_loss - exact_loss), 0.01)
