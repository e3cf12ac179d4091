"""Stands in for CUDA, Apex and Transformer Engine where they are missing, and only there.

NeMo 2.1, Megatron-core 0.10 and NeMo-Aligner 0.7 are written for NVIDIA's container, but only their kernels are: model,
LoRA, data, loss, optimizer wrapper, logging and checkpoints are plain PyTorch. `install()`, called before NeMo is
imported, fills in what they reach for: names that only Apex or Transformer Engine have get PyTorch's or Megatron's own
equivalent, and what is asked of a CUDA device is done on the CPU. In NVIDIA's container nothing is missing and nothing
is done; on a GPU machine with pip packages the functions marked "cuda" below stay out.

Each function is applied right after the import of the module it names, before anybody else can take names from it.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
import types
from collections.abc import Callable
from typing import Any

#: What can be missing. Apex counts as there only with its CUDA extension (amp_C); pip's namesake package has none.
GAPS = ("cuda", "apex", "transformer_engine")

_Patch = Callable[[Any], None]
_patches: list[tuple[str, str, _Patch]] = []
_installed: tuple[str, ...] | None = None


def missing() -> tuple[str, ...]:
    """Which of GAPS this machine lacks, in that order. Imports torch."""
    import torch

    # Apex and Transformer Engine compute on CUDA devices alone. Where CUDA does not answer, as in a CPU process inside
    # NVIDIA's image, they are of no use though they can be imported.
    cuda = torch.cuda.is_available()
    there = {
        "cuda": cuda,
        "apex": cuda and _importable("apex") and _importable("amp_C"),
        "transformer_engine": cuda and _importable("transformer_engine"),
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
    if gaps:
        early = sorted(name for name in sys.modules if name in ("nemo", "megatron.core", "nemo_aligner"))
        if early:
            raise RuntimeError(f"standins.install() must come before the import of {', '.join(early)}")
        _prepare(gaps)
    _installed = gaps
    return gaps


def _prepare(gaps: tuple[str, ...]) -> None:
    import wrapt  # NeMo's own dependency

    # NeMo matches a pattern against the container's version and fails on None where there is no container.
    os.environ.setdefault("NVIDIA_PYTORCH_VERSION", "none")
    if "cuda" in gaps:
        # Megatron decorates functions with torch.compile, which wants a C++ compiler and gains nothing here.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        _cuda_on_cpu()
    if "apex" in gaps:
        # NeMo imports this module by name to ask isinstance(optimizer, ...); the real one needs Apex at import.
        _place("nemo.core.optim.distributed_adam", MegatronDistributedFusedAdam=type("Missing", (), {}))
    if "transformer_engine" in gaps:
        # Without this module NeMo takes its LoRA classes for unavailable, without a word, and adapts nothing.
        _place("megatron.core.extensions.transformer_engine", SplitAlongDim=None)
    for gap, module, patch in _patches:
        if gap in gaps or gap == "any":
            wrapt.register_post_import_hook(patch, module)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: somebody put a module without a spec into sys.modules
        return False


def _place(name: str, **names: Any) -> None:
    module = types.ModuleType(name, f"Stand-in of {__name__}.")
    module.__dict__.update(names)
    sys.modules[name] = module


def _after(gap: str, module: str) -> Callable[[_Patch], _Patch]:
    """Register a function to run after the import of `module`, where `gap` is open ("any": where any is)."""

    def register(patch: _Patch) -> _Patch:
        _patches.append((gap, module, patch))
        return patch

    return register


# --- CUDA -------------------------------------------------------------------------------------------------------------


def _cuda_on_cpu() -> None:
    """What NeMo asks of a CUDA device, the CPU does: factories, moves, streams, random state, autocast."""
    import torch

    cpu = torch.device("cpu")
    cuda: Any = torch.cuda
    for name in ("arange", "as_tensor", "empty", "eye", "full", "ones", "rand", "randint", "randn", "tensor", "zeros"):
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
    def parameter_type(self: torch.nn.Parameter, *args: Any, **kwargs: Any) -> Any:
        answer = torch.Tensor.type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.") if isinstance(answer, str) else answer

    torch.nn.Parameter.type = parameter_type  # type: ignore[assignment]
    _cuda_autocast_on_cpu(torch)


def _cpu_device(factory: Callable[..., Any], cpu: Any) -> Callable[..., Any]:
    @functools.wraps(factory)
    def made(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = cpu
        return factory(*args, **kwargs)

    return made


def _cuda_autocast_on_cpu(torch: Any) -> None:
    def device(name: str) -> str:
        return "cpu" if name == "cuda" else name

    class autocast(torch.amp.autocast):  # a class, since NeMo and Lightning subclass and test for it
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(device(device_type), *args, **kwargs)

    torch.autocast = torch.amp.autocast = autocast
    for name in ("custom_fwd", "custom_bwd"):
        real = getattr(torch.amp, name)

        def on_cpu(function: Any = None, *, device_type: str, _real: Any = real, **kwargs: Any) -> Any:
            return _real(function, device_type=device(device_type), **kwargs)

        setattr(torch.amp, name, functools.wraps(real)(on_cpu))


@_after("cuda", "megatron.core.tensor_parallel.random")
def _random_state(module: Any) -> None:
    """Megatron calls CUDA's C function, which here would queue up for a device that never comes."""
    import torch

    module._set_cuda_rng_state = lambda state, device=-1: torch.set_rng_state(state)
    # It warns wherever the CPU's random state changes in a block that means to change the CUDA device's.
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


@_after("cuda", "nemo.collections.nlp.modules.common.megatron.megatron_init")
def _seed_tracker(module: Any) -> None:
    """NeMo seeds Megatron's random state tracker where it counts a CUDA device only; dropout needs it seeded."""
    real = module._set_random_seed

    def seed_all(seed: int) -> None:
        real(seed)
        module.tensor_parallel.model_parallel_cuda_manual_seed(seed)

    module._set_random_seed = seed_all


@_after("cuda", "megatron.core.tensor_parallel.layers")
def _frozen_weight(module: Any) -> None:
    """The gradient of the logits comes transposed, and torch.matmul then multiplies position by position, with the
    weight (in bf16: a copy of it) for each: half the time of a training step of SmolLM2-135M, and gigabytes.
    """
    real = module.LinearWithFrozenWeight.backward

    def backward(ctx: Any, grad_output: Any) -> Any:
        return real(ctx, grad_output.contiguous())

    module.LinearWithFrozenWeight.backward = staticmethod(backward)


# --- Apex -------------------------------------------------------------------------------------------------------------


@_after("apex", "nemo.core.optim.optimizers")
def _fused_adam(module: Any) -> None:
    """Apex's FusedAdam (adam_w_mode, its default) makes AdamW's update; only its kernel is fused.

    Like Apex's, the stand-in counts steps once a group. torch's AdamW counts them in a scalar beside each parameter's
    moments, which Megatron's sharded checkpoints refuse: they expect every state to have the parameter's shape.
    """
    import torch

    class FusedAdam(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for state in self._states(group):
                    state["step"] = torch.tensor(float(group.get("step", 0)))
            loss = super().step(closure)
            for group in self.param_groups:
                group["step"] = group.get("step", 0) + 1
                for state in self._states(group):
                    state.pop("step")
            return loss

        def __setstate__(self, state: dict[str, Any]) -> None:
            torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own looks for a step beside the moments

        def _states(self, group: Any) -> list[Any]:
            """Of the group's parameters that have been updated before."""
            return [self.state[parameter] for parameter in group["params"] if self.state.get(parameter)]

    real = module.get_optimizer

    def get_optimizer(name: str, **kwargs: Any) -> Any:
        return functools.partial(FusedAdam, **kwargs) if name == "fused_adam" else real(name, **kwargs)

    module.get_optimizer = get_optimizer


@_after("apex", "nemo.core.optim.optimizer_with_main_params")
def _main_params(module: Any) -> None:
    """megatron_amp_O2 refuses to start without Apex, though without an overflow buffer it runs none of it."""
    module.HAVE_APEX = True


@_after("apex", "nemo.collections.nlp.modules.common.megatron.build_model")
def _tensor_parallel_attributes(module: Any) -> None:
    """Megatron-core has Apex's function, under the same name."""
    from megatron.core.tensor_parallel import layers

    name = "set_defaults_if_not_set_tensor_model_parallel_attributes"
    setattr(module, name, getattr(layers, name))


@_after("apex", "nemo.collections.nlp.modules.common.megatron.clip_grads")
def _gradient_norm(module: Any) -> None:
    """The norm over all gradients, as Apex's multi_tensor_l2norm gives it."""
    import torch

    def l2norm(kernel: None, overflow: Any, tensors: list[list[torch.Tensor]], per_tensor: bool) -> Any:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors[0]])), None

    module.amp_C = types.SimpleNamespace(multi_tensor_l2norm=None)
    module.multi_tensor_applier = l2norm


@_after("apex", "nemo.collections.nlp.modules.common.megatron.utils")
def _full_weights(module: Any) -> None:
    """Names that training without LoRA looks up to keep weight decay off the norms."""
    import torch

    module.listify_model = lambda model: model if isinstance(model, list) else [model]
    module.FusedLayerNorm = module.FastLayerNorm = torch.nn.LayerNorm
    module.MixedFusedRMSNorm = torch.nn.RMSNorm


# --- Transformer Engine -----------------------------------------------------------------------------------------------

#: A norm's name as a state dict of Transformer Engine's fused layers has it -> as Megatron's own layers have it.
NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@_after("transformer_engine", "nemo.collections.nlp.models.language_modeling.megatron_gpt_model")
def _local_layers(module: Any) -> None:
    """Megatron's own unfused layers, whatever the .nemo asks for, and no fusion that needs a CUDA extension."""
    module.get_specs = lambda *args, **kwargs: module.get_gpt_layer_local_spec()
    real = module.MegatronGPTModel.build_transformer_config

    def build_transformer_config(self: Any) -> Any:
        config = real(self)
        for fusion in (
            "persist_layer_norm",
            "masked_softmax_fusion",
            "gradient_accumulation_fusion",
            "bias_activation_fusion",
            "bias_dropout_fusion",
            "apply_rope_fusion",
        ):
            setattr(config, fusion, False)
        return config

    module.MegatronGPTModel.build_transformer_config = build_transformer_config


@_after("transformer_engine", "megatron.core.models.gpt.gpt_layer_specs")
def _layer_norms(module: Any) -> None:
    """PyTorch's norms: Apex's, which Megatron would take where it is there, know no RMSNorm."""
    from megatron.core.transformer import torch_norm

    module.LNImpl = torch_norm.WrappedTorchNorm


@_after("transformer_engine", "megatron.core.transformer.transformer_block")
def _final_norm(module: Any) -> None:
    """As above, for the norm after the last layer."""
    from megatron.core.transformer import torch_norm

    module.LayerNormImpl = torch_norm.WrappedTorchNorm


@_after("transformer_engine", "megatron.core.transformer.transformer_layer")
def _norm_names(module: Any) -> None:
    """State dicts keep Transformer Engine's names, so that a .nemo is the same wherever it was written."""
    real = module.TransformerLayer.__init__

    def rename(state: dict[str, Any], prefix: str, names: dict[str, str]) -> None:
        for old, new in names.items():
            if prefix + old in state:
                state[prefix + new] = state.pop(prefix + old)

    def write(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        rename(state, prefix, {local: fused for fused, local in NORMS.items()})

    def read(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
        rename(state, prefix, NORMS)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.register_state_dict_post_hook(write)
        self.register_load_state_dict_pre_hook(read)

    module.TransformerLayer.__init__ = init


@_after("transformer_engine", "nemo.collections.nlp.modules.common.megatron.megatron_utils")
def _no_bert(module: Any) -> None:
    """NeMo lists its BERT models at import, from a module that fails with a NameError of its own without TE."""
    module.get_megatron_pretrained_bert_models = lambda: []


# --- Versions ---------------------------------------------------------------------------------------------------------


@_after("any", "megatron.core.dist_checkpointing.strategies.filesystem_async")
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
