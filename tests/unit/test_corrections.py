"""What is corrected in NeMo and Megatron on every machine, also where CUDA, Apex and Transformer Engine are there."""

from __future__ import annotations

import gc
import types
from typing import Any

import pytest

from launcher.train.nemo_aligner import standins
from launcher.train.nemo_aligner.standins import cuda, everywhere, registry

torch = pytest.importorskip("torch")


def test_they_are_applied_whatever_is_missing() -> None:
    always = {module for gap, module, _ in registry._patches if gap == registry.ALWAYS}
    assert always == {
        "megatron.core.tensor_parallel.layers",
        "nemo.core.classes.mixins.adapter_mixins",
        "nemo_aligner.algorithms.dpo",
        "megatron.core.dist_checkpointing.strategies.filesystem_async",
    }
    assert {gap for gap, _, _ in registry._patches} == {registry.ALWAYS, *standins.GAPS}


def test_the_frozen_output_layers_gradient_is_contiguous() -> None:
    """A transposed one is multiplied position by position, with the whole weight read for each."""
    seen: list[bool] = []

    class Frozen:
        @staticmethod
        def backward(ctx: Any, grad_output: Any) -> Any:
            seen.append(grad_output.is_contiguous())

    everywhere._frozen_weight(types.SimpleNamespace(LinearWithFrozenWeight=Frozen))
    Frozen.backward(None, torch.zeros(2, 3, 4).transpose(0, 1))
    assert seen == [True]


def test_cudas_cache_is_not_emptied_after_each_step() -> None:
    module = types.SimpleNamespace(clear_memory=lambda: pytest.fail("emptied"))
    everywhere._keep_cuda_memory(module)
    assert module.clear_memory is gc.collect


class Adapter:
    def __init__(self, size: int, strategy: Any = None, model_parallel_config: Any = None) -> None:
        self.size, self.strategy, self.config = size, strategy, model_parallel_config


def test_an_adapter_gets_megatrons_own_config() -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    module = types.SimpleNamespace(instantiate=instantiate)
    everywhere._adapters_config(module)
    target = f"{Adapter.__module__}.{Adapter.__name__}"
    config = OmegaConf.create({"_target_": target, "size": 1, "strategy": {"_target_": target, "size": 2}})
    megatron = types.SimpleNamespace(bf16=True)
    adapter = module.instantiate(config, model_parallel_config=megatron, size=3)
    assert adapter.config is megatron
    assert (adapter.size, adapter.strategy.size) == (3, 2)
    assert module.instantiate(config).config is None


def test_megatrons_random_state_is_the_cpus_as_both_versions_ask_for_it() -> None:
    """Megatron-core 0.11, of the default image, reads it by a function of its own, and passes more."""
    module = types.SimpleNamespace(__name__="megatron.core.tensor_parallel.random")
    cuda._random_state(module)
    before = module._get_cuda_rng_state(graph_safe=False)
    drawn = torch.rand(3)
    module._set_cuda_rng_state(before)  # 0.10
    assert torch.equal(torch.rand(3), drawn)
    module._set_cuda_rng_state(before, graph_safe=False)  # 0.11
    assert torch.equal(torch.rand(3), drawn)
