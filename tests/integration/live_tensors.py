"""Models of any size built and run without their memory, and a count of the bytes that would be live.

Tensors are fake: they have shapes and types and no data. Each storage that an operation makes is counted while it
lives. Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core.tensor_parallel import random
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils.train_script_utils import init_distributed, init_peft, resolve_and_create_trainer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from launcher.check import memory
from launcher.train.nemo_aligner import base_model, divergence, recompute, settings
from launcher.train.ranks import Device, Ranks
from launcher.train.run import load_config


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operations make, as long as they live."""

    def __init__(self, others: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet(tensor.untyped_storage() for tensor in others)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, made)
        return made

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            if self.now > self.peak:
                gc.collect()  # cycles of Python objects hold tensors until then
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, size: int) -> None:
        self.now -= size


def without_data(trial_dir: Path, shape: Mapping[str, Any], vocabulary: int) -> Callable[..., Any]:
    """built(layers, length, dropout, keys): a context with a model of this shape and adapters, and its count."""
    config = load_config(trial_dir)
    ranks = Ranks.from_environment()
    ranks.export()
    settings.configure(config, trial_dir, ranks, Device("cpu", "bf16", ""))
    base_model.complete_config(config, trial_dir)
    config.model.update({key: value for key, value in shape.items() if key != "tokenizer"})
    config.model.make_vocab_size_divisible_by = vocabulary
    lightning = resolve_and_create_trainer(config, "dpo")
    _need_no_data()
    gc.freeze()  # NeMo's import leaves two million objects, which need not be looked through each time

    @contextlib.contextmanager
    def built(layers: int, length: int, dropout: float, keys: dict[str, Any]) -> Any:
        config.model.update({**dict.fromkeys(memory._FULL), **keys})
        config.model.update({"num_layers": layers, "encoder_seq_length": length})
        config.model.peft.lora_tuning.adapter_dropout = dropout
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            model = MegatronGPTDPOModel(config.model, lightning)
        init_distributed(lightning, model, False)
        with mode:
            init_peft(model, config.model)
            recompute.keep_gradients(model)
            model.train()
            yield divergence.megatron_gpt(model), Live(model.parameters())

    return built


def flash(gpt: Any) -> None:
    """Attention that keeps what a GPU's kernel for rows keeps: queries, keys, values, and its answer."""
    for layer in gpt.decoder.layers:
        layer.self_attention.core_attention.forward = lambda query, key, value, *rest, **options: _Kernel.apply(
            query, key, value
        )


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        answer = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, answer)
        return answer.flatten(2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _need_no_data() -> None:
    """What a fake tensor cannot do: random states are compared by value; a module converts its parameters in place."""

    def to_bf16(self: torch.nn.Module) -> torch.nn.Module:
        for module in self.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None and weight.dtype != torch.bfloat16:
                    made = torch.nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=weight.requires_grad)
                    vars(made).update(vars(weight))
                    module._parameters[name] = made
        return self

    torch.nn.Module.bfloat16 = to_bf16  # type: ignore[assignment]
    random.CudaRNGStatesTracker.fork = lambda self, *args, **kwargs: contextlib.nullcontext()
