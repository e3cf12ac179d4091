"""The terms of the memory estimate against a count of live tensors, at Llama-3-8B's true shape, without the memory.

The model is built and run with fake tensors, which have shapes and types and no data; each storage that an operation
makes is counted while it lives. What is counted is what PyTorch's own operations keep: Megatron without Transformer
Engine. Terms a layer are the difference between four layers and two.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.check import memory
from launcher.nemo.base_model import BaseModel
from tests import configs
from tests.integration.minimal_trial import write_trial
from tests.unit.llama import LLAMA3_8B

pytest.importorskip("nemo_aligner")
pytestmark = [pytest.mark.nemo, pytest.mark.slow]

VOCABULARY = 128256
MIB = 1 << 20
FULL = memory._FULL
SELECTIVE = {"activations_checkpoint_granularity": "selective"}
LAYERS = (2, 4)
#: name -> length of a sequence, dropout of the adapters, keys of `model`.
CASES: dict[str, tuple[int, float, dict[str, Any]]] = {
    "with dropout": (2048, 0.05, {}),
    "without dropout": (2048, 0.0, {}),
    "short": (512, 0.05, {}),
    "full": (2048, 0.05, FULL),
    "selective": (2048, 0.05, SELECTIVE),
}
#: Positions of rows that pairs share, such as take 1,536 and 2 x 2,048 as sequences.
ROWS = (1536, 4096)


def count_instead() -> None:
    """The rank counts in place of training."""
    from launcher.train import run

    run.run_trial = _count  # type: ignore[assignment]


def _count(trial_dir: Path) -> None:
    import torch
    from megatron.core.parallel_state import get_global_memory_buffer
    from nemo_aligner.utils.distributed import from_parallel_logits_to_logprobs

    from launcher.train.nemo_aligner.savings.response_logits import LogProbability
    from tests.integration import live_tensors

    built = live_tensors.without_data(trial_dir, LLAMA3_8B, VOCABULARY)
    counted: dict[str, Any] = {}
    for name, (length, dropout, keys) in CASES.items():
        for layers in LAYERS:
            with built(layers, length, dropout, keys) as (gpt, live):
                gpt.output_layer.forward = lambda hidden, *args, **kwargs: (hidden, None)
                tokens = torch.zeros(2, length, dtype=torch.long)
                places = torch.arange(length)[None].expand(2, length)
                mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
                get_global_memory_buffer().buffer.clear()
                with live:
                    gpt(tokens, places, mask).sum().backward()
                counted[f"{name}, {layers} layers"] = live.peak
    for positions in ROWS:
        for layers in LAYERS:
            with built(layers, positions, 0.0, {}) as (gpt, live):
                live_tensors.flash(gpt)
                gpt.output_layer.forward = lambda hidden, *args, **kwargs: (hidden, None)
                tokens = torch.zeros(1, positions, dtype=torch.long)
                with live:
                    gpt(tokens, torch.arange(positions)[None], None).sum().backward()
                counted[f"a row of {positions}, {layers} layers"] = live.peak
    for name in ("picked", "stock"):
        with built(1, 2048, 0.0, {}) as (gpt, live):
            hidden = torch.zeros(2048, 2, LLAMA3_8B["hidden_size"], dtype=torch.bfloat16, requires_grad=True)
            labels = torch.ones(2, 2048, dtype=torch.long)
            with live:
                if name == "picked":
                    logits = gpt.output_layer(hidden.flatten(0, 1)[None])[0].float()[0]
                    found = LogProbability.apply(logits, labels.view(-1), True)
                else:
                    logits = gpt.output_layer(hidden)[0].transpose(0, 1).float()
                    found = from_parallel_logits_to_logprobs(logits, labels, False, True, False)
                del logits
                found.sum().backward()
            counted[name] = live.peak
    Path(os.environ["COUNTED"]).write_text(json.dumps(counted))


@pytest.fixture(scope="module")
def counted(train, tiny_nemo, pairs, tmp_path_factory) -> dict[str, int]:
    """Bytes at the peak of a forward and backward pass, without the weights, by case."""
    folder = tmp_path_factory.mktemp("memory")
    trial = write_trial(folder / "0", "tiny", tiny_nemo, pairs, {"trainer.precision": "bf16", **LORA})
    done = train(trial, change=count_instead, variables={"COUNTED": folder / "counted.json"})
    assert done.exit_codes == [0], done.said()
    found: dict[str, int] = json.loads((folder / "counted.json").read_text())
    print({name: round(size / MIB) for name, size in found.items()})
    return found


LORA = {"model.peft.lora_tuning.adapter_dim": 32, "model.peft.lora_tuning.alpha": 16}


@pytest.fixture
def estimate(monkeypatch):
    """estimate(layers, length, dropout, keys) -> the estimate for an 8B model with so many layers."""
    monkeypatch.setattr(memory, "attention_is_fused", lambda trial: False)

    def of(layers: int, length: int = 2048, dropout: float = 0.0, keys: dict[str, Any] | None = None, **more: Any):
        changes = {
            "compute.share_prompt": False,
            "model.encoder_seq_length": length,
            "model.peft.lora_tuning.adapter_dropout": dropout,
            **more,
        }
        trial = configs.typed(("cluster=slurm", "model=llama3_8b", "data=sample"), changes)
        base = BaseModel(Path("m.nemo"), {**LLAMA3_8B, "num_layers": layers}, VOCABULARY, {})
        found = memory.per_gpu(base, trial, keys)
        assert found is not None
        return found

    return of


@pytest.mark.parametrize("case", CASES)
def test_what_layers_keep(counted, estimate, case):
    """Each layer within 8 %. Tensors of one layer at a time are in no term; the overhead has room for them."""
    length, dropout, keys = CASES[case]
    found = [estimate(layers, length, dropout, keys) for layers in LAYERS]
    on_paper = [(each.activations + each.scores) * memory.GIB for each in found]
    real = [counted[f"{case}, {layers} layers"] for layers in LAYERS]
    assert on_paper[1] - on_paper[0] == pytest.approx(real[1] - real[0], rel=0.08)
    assert 0 <= real[0] - on_paper[0] < memory.OVERHEAD_GIB * memory.GIB / 2


def test_the_vocabularys_logits_at_their_peak(counted, estimate):
    found = estimate(1).logits, estimate(1, **{"compute.skip_prompt_logits": False}).logits
    assert [each * memory.GIB for each in found] == pytest.approx([counted["picked"], counted["stock"]], rel=0.03)


@pytest.mark.parametrize("positions", ROWS)
def test_a_rows_positions_predict_what_layers_keep(counted, estimate, positions):
    """Within 10 %, whatever pairs the row has; logits at the most are a term of their own."""
    rows = {"compute.share_prompt": True, "compute.positions_per_micro_batch": positions}
    found = [estimate(layers, positions // 2, **rows).activations * memory.GIB for layers in LAYERS]
    real = [counted[f"a row of {positions}, {layers} layers"] for layers in LAYERS]
    assert found[1] - found[0] == pytest.approx(real[1] - real[0], rel=0.1)
    assert 0 <= real[0] - found[0] < memory.OVERHEAD_GIB * memory.GIB / 2


def test_a_pair_that_shares_nothing_takes_less_as_a_row_than_as_sequences(counted):
    """Rows have no layer keep attention scores."""
    assert counted["a row of 4096, 4 layers"] < counted["without dropout, 4 layers"]
