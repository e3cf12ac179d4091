"""Memory on paper: the numbers of the literature's formula for Llama-3-8B, and when a trial is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher import gpus
from launcher.check import memory, preflight
from launcher.compose.trials import PlannedTrial
from launcher.nemo.base_model import BaseModel
from launcher.trial_config.config import TrialConfig
from tests.unit.conftest import changed
from tests.unit.llama import LLAMA3_8B, write_described

BASE = BaseModel(Path("llama3_8b.nemo"), LLAMA3_8B, 128256, {})


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in NVIDIA's container, whatever is installed here."""
    monkeypatch.setattr(memory, "attention_is_fused", lambda trial: True)


@pytest.fixture
def llama(composed: Any, workspace: Path) -> Any:
    """llama(*overrides) -> a trial of the 8B model on Slurm."""

    def build(*overrides: str) -> TrialConfig:
        config, found = composed("cluster=slurm", "model=llama3_8b", "data=sample", *overrides)
        assert found == []
        return config  # type: ignore[no-any-return]

    return build


def parts(trial: TrialConfig) -> list[float]:
    found = memory.per_gpu(BASE, trial)
    assert found is not None
    return [round(part, 1) for part in (found.weights, found.states, found.activations, found.logits, found.total)]


def test_llama_3_8b(llama: Any) -> None:
    dry = "model.peft.lora_tuning.adapter_dropout=0"
    assert parts(llama(dry)) == [15.0, 1.2, 16.0, 5.9, 40.0]
    assert parts(llama()) == [15.0, 1.2, 25.8, 5.9, 49.8]
    full = [f"++model.{key}={value}" for key, value in memory._FULL.items()]
    assert parts(llama(dry, *full)) == [15.0, 1.2, 1.5, 5.9, 25.5]


def test_without_transformer_engine_scores_are_kept(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 heads x 2,048 x 2,048 probabilities of 2 bytes in each of 2 sequences: 0.5 GiB a layer."""
    monkeypatch.setattr(memory, "attention_is_fused", lambda trial: False)
    assert parts(llama()) == [15.0, 1.2, 32.8, 5.9, 56.8]  # rows have attention of their own
    apart = "compute.share_prompt=false"
    kept = memory.per_gpu(BASE, llama(apart))
    half = memory.per_gpu(BASE, llama(apart, "model.encoder_seq_length=1024"))
    assert kept and half
    assert kept.scores == 34 * 0.5 and half.scores == kept.scores / 4  # of 32 layers; the gradient of one; a buffer
    assert "attention scores 17.0 (no Transformer Engine)" in str(kept)
    full = memory.per_gpu(BASE, llama(apart), memory._FULL)
    selective = memory.per_gpu(BASE, llama(apart), {"activations_checkpoint_granularity": "selective"})
    assert full and selective and full.scores == selective.scores == 1.5
    assert full.activations < 3 < kept.activations == selective.activations


def test_where_logits_are_computed_everywhere_they_take_more(llama: Any) -> None:
    picked, stock = parts(llama()), parts(llama("compute.share_prompt=false", "compute.skip_prompt_logits=false"))
    assert stock[3] == pytest.approx(picked[3] * 20 / 12, abs=0.1)
    together = ("model.tensor_model_parallel_size=2", "++model.sequence_parallel=true")
    assert parts(llama(*together))[3] == pytest.approx(stock[3] / 2, abs=0.1)


def test_who_has_transformer_engine(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    installed = {"torch"}
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: name in installed or None)
    assert not memory.attention_is_fused(llama())
    assert memory.attention_is_fused(llama("cluster.python=/opt/venv/bin/python"))  # another environment: not known
    assert memory.attention_is_fused(llama("cluster.container.runtime=pyxis", "cluster.container.image=x"))
    installed.add("transformer_engine")
    assert memory.attention_is_fused(llama())
    installed.clear()  # a login node
    assert memory.attention_is_fused(llama())


def test_parallelism_divides(llama: Any) -> None:
    whole, tensor = parts(llama()), parts(llama("model.tensor_model_parallel_size=4"))
    split = parts(llama("model.tensor_model_parallel_size=4", "++model.sequence_parallel=true"))
    assert tensor[0] == split[0] == pytest.approx(whole[0] / 4, abs=0.1)
    assert whole[2] / 4 == pytest.approx(split[2], abs=0.1) and split[2] < tensor[2] < whole[2]
    # the first of four stages has four micro batches in flight, and no logits
    first = parts(llama("model.pipeline_model_parallel_size=4"))
    assert first[2] == whole[2] and first[3] == 0 and first[0] < whole[0] / 3


def test_micro_batches_and_length_scale_it(llama: Any) -> None:
    one, two = parts(llama()), parts(llama("model.micro_batch_size=2"))
    assert two[2:4] == pytest.approx([2 * one[2], 2 * one[3]], abs=0.2)
    assert parts(llama("model.encoder_seq_length=1024"))[2] == pytest.approx(one[2] / 2, abs=0.1)
    reference = parts(llama("model.dpo.log_prob_forward_micro_batch_size=4"))
    assert reference[2] == one[2] and reference[3] == pytest.approx(4 * one[3], abs=0.2)


def test_positions_of_a_row_take_the_place_of_pairs(llama: Any) -> None:
    one = parts(llama())  # of two sequences of 2,048
    rows = parts(llama("model.micro_batch_size=4", "compute.positions_per_micro_batch=8192"))
    assert rows[2:4] == pytest.approx([2 * one[2], 2 * one[3]], abs=0.2)
    assert parts(llama("compute.positions_per_micro_batch=16")) == one  # a pair may have nothing to share


def test_blocks_recomputed_are_between_all_and_none(llama: Any) -> None:
    block = llama(
        "++model.activations_checkpoint_granularity=full",
        "++model.activations_checkpoint_method=block",
        "++model.activations_checkpoint_num_layers=16",
    )
    assert 1.8 < parts(block)[2] < 25.8


def test_whole_weights_take_18_bytes_a_parameter_and_fp32_twice(llama: Any) -> None:
    trial = llama("model.peft.peft_scheme=none")
    found = memory.per_gpu(BASE, trial)
    assert found and (found.weights + found.states) * memory.GIB == pytest.approx(18 * 8030261248, rel=1e-3)
    shared = memory.per_gpu(BASE, changed(trial, {"model.optim.name": "distributed_fused_adam"}))
    assert shared and shared.states < found.states / 3
    assert parts(llama("trainer.precision='32'"))[0] == pytest.approx(2 * 15.0, abs=0.2)


def test_without_o2_weights_are_fp32_and_activations_are_not(llama: Any) -> None:
    """NeMo's params_dtype is fp32 then, whatever the precision: 15 GiB more for the 8B model."""
    bf16, off = (memory.per_gpu(BASE, llama(*words)) for words in ([], ["model.megatron_amp_O2=false"]))
    single = memory.per_gpu(BASE, llama("trainer.precision='32'"))
    assert bf16 and off and single
    assert off.weights == single.weights == 2 * bf16.weights
    assert (off.activations, off.logits) == (bf16.activations, bf16.logits)
    assert off.states == single.states == pytest.approx(bf16.states * 16 / 18)  # no main copy
    full = memory.per_gpu(BASE, llama("model.peft.peft_scheme=none", "model.megatron_amp_O2=false"))
    assert full and (full.weights + full.states) * memory.GIB == pytest.approx(16 * 8030261248, rel=1e-3)


def test_a_model_that_does_not_say_its_shape(llama: Any) -> None:
    assert memory.per_gpu(BaseModel(Path("m"), {}, 10, {}), llama()) is None
    assert memory.per_gpu(BaseModel(Path("m"), LLAMA3_8B, None, {}), llama()) is None


def test_the_warning_has_its_numbers_and_a_way_out(llama: Any, workspace: Path) -> None:
    write_described(workspace / "m.nemo", LLAMA3_8B, 128256)

    def warned(*overrides: str) -> list[str]:
        config = llama("pretrained_checkpoint.restore_from_path=m.nemo", *overrides)
        return [str(f) for f in preflight.warnings([PlannedTrial([], config)] * 2, workspace / "runs" / "s")]

    (found,) = warned("cluster.gpu_memory_gb=40")
    assert found.startswith("cluster.gpu_memory_gb=40: the trial needs about 50 GiB per GPU, calculated: weights 15.0,")
    assert "activations_checkpoint_granularity=full" in found and "makes it 26 GiB" in found
    assert warned("cluster.gpu_memory_gb=80") == []
    assert warned() == []  # not known
    assert warned("cluster.gpu_memory_gb=40", "cluster.gpus_per_node=null") == []  # on CPUs
    summary = preflight.summary(llama("pretrained_checkpoint.restore_from_path=m.nemo", "model.global_batch_size=8"))
    assert "  memory     about 50 GiB per GPU, calculated" in summary


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = gpus.rows("NVIDIA H100 80GB HBM3, 81559, 550.54.15, 9.0\nTesla V100-SXM2-32GB, 32768, 550.54.15, [N/A]\n")
    assert [(round(gpu.memory_gib, 1), gpu.bf16) for gpu in found] == [(79.6, True), (32.0, False)]
    with pytest.raises(gpus.NoAnswer, match="cannot parse"):
        gpus.rows("No devices were found\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.query() == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver.'\nexit 9\n"
    )
    smi.chmod(0o755)
    with pytest.raises(gpus.NoAnswer, match="could not communicate"):
        gpus.query()
