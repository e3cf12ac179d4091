"""Stands in for CUDA, Apex and Transformer Engine where they are missing, and only there.

NeMo, Megatron-core and NeMo-Aligner are written for NVIDIA's container, but only their kernels are: model, LoRA, data,
loss, optimizer wrapper, logging, checkpoints are plain PyTorch. `install()`, called before NeMo is imported, fills in
what they reach for: names that only Apex or Transformer Engine have get PyTorch's or Megatron's own equivalent
(apex.py, transformer_engine.py), and what is asked of a CUDA device is done on the CPU (cuda.py). In NVIDIA's container
nothing is missing, and only everywhere.py is applied; on a GPU machine with pip packages cuda.py stays out. Whoever
imports NeMo does so inside `importing()`, which leaves out packages that training does not use (deferred.py).
"""

from __future__ import annotations

import importlib.util
import os
import sys

from launcher.train.nemo_aligner.standins import apex, cuda, everywhere, registry, transformer_engine
from launcher.train.nemo_aligner.standins.deferred import importing

__all__ = ["GAPS", "apex", "cuda", "everywhere", "importing", "install", "missing", "transformer_engine"]

#: What can be missing. Apex counts as there only with its CUDA extension (amp_C); pip's namesake package has none.
GAPS = ("cuda", "apex", "transformer_engine")

_installed: tuple[str, ...] | None = None


def missing() -> tuple[str, ...]:
    """Which of GAPS this machine lacks, in that order. Imports torch."""
    import torch

    # Apex and Transformer Engine compute only on CUDA devices. Where CUDA does not answer, as in a CPU process inside
    # NVIDIA's image, they are of no use though they can be imported.
    answers = torch.cuda.is_available()
    there = {
        "cuda": answers,
        "apex": answers and _importable("apex") and _importable("amp_C"),
        "transformer_engine": answers and _importable("transformer_engine"),
    }
    return tuple(gap for gap in GAPS if not there[gap])


def install() -> tuple[str, ...]:
    """Put the stand-ins in place; returns missing(). A second call changes nothing.

    Raises RuntimeError where NeMo or Megatron-core is already imported: their names are bound by then.
    """
    global _installed
    if _installed is not None:
        return _installed
    gaps = missing()
    early = sorted(name for name in sys.modules if name in ("nemo", "megatron.core", "nemo_aligner"))
    if early:
        raise RuntimeError(f"standins.install() must come before the import of {', '.join(early)}")
    if gaps:
        # NeMo matches a pattern against the container's version and fails on None where there is no container.
        os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
    if "cuda" in gaps:
        # Megatron decorates functions with torch.compile, which wants a C++ compiler and gains nothing here.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        cuda.cuda_on_cpu()
    if "apex" in gaps:
        # NeMo imports this module by name to ask isinstance(optimizer, ...); the real one needs Apex at import.
        registry.place("nemo.core.optim.distributed_adam", MegatronDistributedFusedAdam=type("Missing", (), {}))
    if "transformer_engine" in gaps:
        # Without this module NeMo takes its LoRA classes for unavailable, without a word, and adapts nothing.
        registry.place("megatron.core.extensions.transformer_engine", SplitAlongDim=None)
    registry.hook(gaps)
    _installed = gaps
    return gaps


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: somebody put a module without a spec into sys.modules
        return False
