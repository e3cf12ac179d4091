"""SwiGLU as one kernel where Transformer Engine is there: fewer passes over memory, less kept for the backward pass.

Converters write `bias_activation_fusion: false` into a .nemo. Here the fusion goes on all the same, unless the trial's
own config has the key or asks for `deterministic` (another node might decide otherwise), once it has computed on this
GPU what the unfused layers compute: torch.compile makes the kernel, and what it needs (Triton, a compiler) may be
missing on a node. `apply_rope_fusion` stays off: with Transformer Engine, Megatron then copies queries, keys and values
into another layout in each layer (extensions/transformer_engine.py, qkv_format).

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from megatron.core.fusions import fused_bias_swiglu
from megatron.core.transformer.mlp import MLP
from omegaconf import DictConfig, open_dict
from torch.nn.functional import silu

from launcher.train.nemo_aligner import standins

if TYPE_CHECKING:
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

KEY = "bias_activation_fusion"
#: Roundings by which the two may differ, of the largest value. Unfused, each of three steps is rounded to bf16 forward,
#: and each of six backward.
_ROUNDINGS = 8


def leave_open(model_config: DictConfig) -> None:
    """Before the model is built: where its .nemo has the fusion off, note that `switch_on` is to decide."""
    if model_config.get(KEY) is False:
        model_config[KEY] = None


def switch_on(model: MegatronGPTDPOModel) -> None:
    """Decide what is left open: on in all ranks, or in none. Every rank has to call it."""
    if model.cfg.get(KEY, True) is not None:
        return
    weight = next(model.parameters())
    layers = [module for module in model.modules() if isinstance(module, MLP)]
    here = "transformer_engine" not in standins.missing()
    why = ""
    if here:
        swiglu = all(map(_is_swiglu, layers))
        why = problem(weight.device, weight.dtype) if swiglu else "the model's activation is not SwiGLU without biases"
    works = torch.tensor(here and not why, dtype=torch.int32, device=weight.device)
    torch.distributed.all_reduce(works, torch.distributed.ReduceOp.MIN)
    on = bool(works)
    if here and not on:
        print(f"{KEY} stays off: {why or 'it does not work in another rank'}", flush=True)
    for layer in layers:
        layer.config.bias_activation_fusion = on
    with open_dict(model.cfg):
        model.cfg[KEY] = on


def _is_swiglu(layer: MLP) -> bool:
    config = layer.config
    return bool(config.gated_linear_unit and layer.activation_func is silu and not config.add_bias_linear)


def problem(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with the fused kernel on this device; "" if it computes what the unfused one does."""
    chance = torch.Generator().manual_seed(0)
    given, gradient = (torch.randn(96, 2, width, generator=chance).to(device, dtype) for width in (512, 256))
    unfused = _both_ways(_unfused, given, gradient)
    try:
        fused = _both_ways(lambda x: fused_bias_swiglu.bias_swiglu_impl(x, None), given, gradient)
        differences = [
            float((one.float() - other.float()).abs().max() / other.float().abs().max())
            for one, other in zip(fused, unfused, strict=True)
        ]  # what failed on a GPU may be told only here
    except Exception as error:  # of torch.compile, of the compiler that it calls, of CUDA
        return f"it fails here ({' '.join(str(error).split())[:200]})"
    bound = _ROUNDINGS * torch.finfo(dtype).eps / 2
    for name, difference in zip(("value", "gradient"), differences, strict=True):
        if not difference <= bound:  # nan, too
            return f"its {name} is {difference:.1e} from the unfused one's (bound {bound:.1e})"
    return ""


def _both_ways(
    compute: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(value, gradient with respect to what is given)."""
    given = given.clone().requires_grad_()
    value = compute(given)
    value.backward(gradient)
    assert given.grad is not None
    return value.detach(), given.grad


def _unfused(given: torch.Tensor) -> torch.Tensor:
    """As Megatron's MLP computes it, with LoRA, too."""
    gate, up = given.chunk(2, -1)
    return silu(gate) * up
