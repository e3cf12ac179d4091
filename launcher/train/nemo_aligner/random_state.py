"""Saves and restores random states (for LoRA's dropout), so that a resumed trial draws the same random numbers.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


class RandomState(TypedDict):
    """The random states of one rank."""

    torch: torch.Tensor
    device: torch.Tensor
    megatron: dict[str, torch.Tensor]
    numpy: tuple[str, list[int], int, int, float]
    python: tuple[object, ...]


def get() -> RandomState:
    """This rank's states: torch on the CPU and on its device, Megatron's tracker, numpy, Python."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "megatron": dict(get_cuda_rng_tracker().get_states()),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def put(state: RandomState) -> None:
    """Restore what get() returned."""
    torch.cuda.set_rng_state(state["device"].cpu())
    torch.set_rng_state(state["torch"].cpu())  # last: without CUDA it is also the device's state
    get_cuda_rng_tracker().set_states({name: tensor.cpu() for name, tensor in state["megatron"].items()})
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    random.setstate(state["python"])


@contextmanager
def untouched() -> Iterator[None]:
    """Restore the random states at the end of the block, so that a validation does not change the training."""
    before = get()
    try:
        yield
    finally:
        put(before)


def of_all_ranks() -> list[RandomState]:
    """get() of every rank, on every rank; some 10 kB each."""
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, get())
    return states
