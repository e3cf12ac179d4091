"""What NeMo asks of a CUDA device, done on the CPU."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from launcher.train.nemo_aligner.standins.registry import after


def cuda_on_cpu() -> None:
    """What NeMo asks of a CUDA device, the CPU does: factories, moves, streams, random state, autocast."""
    import torch

    cpu = torch.device("cpu")
    cuda: Any = torch.cuda
    for name in (
        "arange",
        "as_tensor",
        "empty",
        "empty_like",
        "eye",
        "full",
        "ones",
        "rand",
        "randint",
        "randn",
        "tensor",
        "zeros",
    ):
        setattr(torch, name, _cpu_device(getattr(torch, name), cpu))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]

    cuda.current_device = lambda: cpu
    cuda.manual_seed = torch.default_generator.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.Stream = type("Stream", (), {"__init__": lambda self, *args, **kwargs: None})
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool"):
        setattr(cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))

    # NeMo's O2 optimizer knows a parameter's precision by the name of its CUDA type.
    def parameter_type(self: torch.nn.Parameter, *args: Any, **kwargs: Any) -> object:
        answer = torch.Tensor.type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.") if isinstance(answer, str) else answer

    torch.nn.Parameter.type = parameter_type  # type: ignore[assignment]
    _cuda_autocast_on_cpu(torch)


def _cpu_device(factory: Callable[..., object], cpu: Any) -> Callable[..., object]:
    @functools.wraps(factory)
    def made(*args: object, **kwargs: object) -> object:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = cpu
        return factory(*args, **kwargs)

    return made


def _cuda_autocast_on_cpu(torch: Any) -> None:
    def device(name: str) -> str:
        return "cpu" if name == "cuda" else name

    class autocast(torch.amp.autocast):  # a class, since NeMo and Lightning subclass and test for it
        def __init__(self, device_type: str, *args: object, **kwargs: object) -> None:
            super().__init__(device(device_type), *args, **kwargs)

    torch.autocast = torch.amp.autocast = autocast
    for name in ("custom_fwd", "custom_bwd"):
        real = getattr(torch.amp, name)

        def on_cpu(function: Any = None, *, device_type: str, _real: Any = real, **kwargs: object) -> Any:
            return _real(function, device_type=device(device_type), **kwargs)

        setattr(torch.amp, name, functools.wraps(real)(on_cpu))


@after("cuda", "megatron.core.tensor_parallel.random")
def _random_state(module: Any) -> None:
    """Megatron calls CUDA's C function, which here would queue up for a device that never comes."""
    import torch

    module._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    module._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()  # which Megatron-core 0.10 has not
    # It warns wherever the CPU's random state changes in a block that means to change the CUDA device's.
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


@after("cuda", "nemo.collections.nlp.modules.common.megatron.megatron_init")
def _seed_tracker(module: Any) -> None:
    """NeMo seeds Megatron's random state tracker where it counts a CUDA device only; dropout needs it seeded."""
    real = module._set_random_seed

    def seed_all(seed: int) -> None:
        real(seed)
        module.tensor_parallel.model_parallel_cuda_manual_seed(seed)

    module._set_random_seed = seed_all
