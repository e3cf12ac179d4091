"""A GPU machine with pip packages, played on a CPU: CUDA answers, and the CPU computes.

`python -m tests.integration.played_gpu TRIAL` trains one rank as `python -m launcher.train TRIAL` does if torch finds
a GPU and neither Apex nor Transformer Engine is there. What a CUDA device does is done by the CPU as in
launcher.train.nemo_aligner.standins.cuda, but the stand-ins themselves must not know: they see a GPU, choose the branch
that such a machine takes, and register nothing for a missing CUDA.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any

import torch

NAME = "a played GPU"


def play() -> None:
    """Patch torch. Call it before the stand-ins are installed and before NeMo is imported."""
    from launcher.train.nemo_aligner.standins import cuda as on_cpu

    on_cpu.cuda_on_cpu()
    cuda: Any = torch.cuda
    shape = types.SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 << 30)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "get_device_name": NAME,
        "get_device_properties": shape,
        "get_device_capability": (shape.major, shape.minor),
        "memory_allocated": 0,
        "ipc_collect": None,
    }
    for name, answer in answers.items():
        setattr(cuda, name, lambda *args, answer=answer, **kwargs: answer)
    cuda.random.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.random.set_rng_state = lambda state, *args: torch.set_rng_state(state)
    stream = types.SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None, synchronize=lambda: None)
    cuda.current_stream = cuda.default_stream = lambda *args: stream
    cuda.stream = cuda.device = lambda *args: contextlib.nullcontext()
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = _to_the_cpu(owner.to)
    _gloo_for_nccl()
    _megatron_sets_the_random_state()


def _to_the_cpu(move: Any) -> Any:
    """`.to` of a tensor or a module, for which "cuda" is the CPU."""

    def device(value: Any) -> Any:
        is_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        return torch.device("cpu") if is_cuda else value

    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        return move(self, *map(device, args), **{name: device(value) for name, value in kwargs.items()})

    return moved


def _gloo_for_nccl() -> None:
    distributed: Any = torch.distributed
    start, group = distributed.init_process_group, distributed.new_group

    def started(backend: str, *args: Any, device_id: Any = None, **kwargs: Any) -> Any:
        print(f"process group: {backend}", flush=True)
        return start("gloo", *args, **kwargs)

    def grouped(*args: Any, backend: Any = None, pg_options: Any = None, **kwargs: Any) -> Any:
        return group(*args, backend="gloo", **kwargs)

    distributed.init_process_group, distributed.new_group = started, grouped


def _megatron_sets_the_random_state() -> None:
    """Megatron calls CUDA's generator by torch's C functions."""
    import wrapt

    def set_state(state: torch.Tensor, device: Any = -1, **more: Any) -> None:
        torch.set_rng_state(state)

    def patch(module: Any) -> None:
        module._set_cuda_rng_state = set_state

    wrapt.register_post_import_hook(patch, "megatron.core.tensor_parallel.random")


if __name__ == "__main__":
    play()
    from launcher.train.__main__ import main

    sys.exit(main(sys.argv[1:]))
