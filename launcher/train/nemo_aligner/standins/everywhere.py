"""What is corrected on every machine, whether or not anything is missing there."""

from __future__ import annotations

import gc
from typing import Any

from launcher.train.nemo_aligner.standins.registry import after


@after("always", "megatron.core.tensor_parallel.layers")
def _frozen_weight(module: Any) -> None:
    """The gradient of the logits comes transposed. torch.matmul then multiplies position by position, on a GPU as well,
    and reads the whole weight (in bf16 on a CPU: a copy of it) for each: half the time of a step of SmolLM2-135M.
    """
    real = module.LinearWithFrozenWeight.backward

    def backward(ctx: Any, grad_output: Any) -> Any:
        return real(ctx, grad_output.contiguous())

    module.LinearWithFrozenWeight.backward = staticmethod(backward)


@after("always", "nemo.core.classes.mixins.adapter_mixins")
def _adapters_config(module: Any) -> None:
    """Adapters get Megatron's and the model's config as they are. NeMo gives them to hydra, which makes an OmegaConf of
    them anew for each adapter, some 50 ms; at every step each adapter then asks that slow copy for its fields.
    """
    real = module.instantiate
    module.instantiate = lambda config, **arguments: real(config, _partial_=True)(**arguments)


@after("always", "nemo_aligner.algorithms.dpo")
def _keep_cuda_memory(module: Any) -> None:
    """DPOTrainer empties the CUDA allocator's cache after every step, so that each step allocates all of it anew."""
    module.clear_memory = gc.collect


@after("always", "megatron.core.dist_checkpointing.strategies.filesystem_async")
def _checkpoint_writer(module: Any) -> None:
    """torch 2.7 put a parameter before and one behind those of this private function; Megatron-core 0.10 is older."""
    import inspect

    from torch.distributed.checkpoint import filesystem as torch_side

    parameters = inspect.signature(torch_side._write_item).parameters
    if "transforms" not in parameters:
        return
    before = (torch_side._StorageWriterTransforms(),)
    behind = (torch_side.SerializationFormat.TORCH_SAVE,) if "serialization_format" in parameters else ()
    module._write_item = lambda *args: torch_side._write_item(*before, *args, *behind)
