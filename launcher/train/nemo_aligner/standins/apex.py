"""PyTorch's equivalents of what only Apex has."""

from __future__ import annotations

import functools
import types
from typing import Any

from launcher.train.nemo_aligner.standins.registry import after


@after("apex", "nemo.core.optim.optimizers")
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

        def __setstate__(self, state: dict[str, object]) -> None:
            torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own looks for a step beside the moments

        def _states(self, group: Any) -> list[Any]:
            """Of the group's parameters that have been updated before."""
            return [self.state[parameter] for parameter in group["params"] if self.state.get(parameter)]

    real = module.get_optimizer

    def get_optimizer(name: str, **kwargs: Any) -> object:
        return functools.partial(FusedAdam, **kwargs) if name == "fused_adam" else real(name, **kwargs)

    module.get_optimizer = get_optimizer


@after("apex", "nemo.core.optim.optimizer_with_main_params")
def _main_params(module: Any) -> None:
    """megatron_amp_O2 refuses to start without Apex, though without an overflow buffer it runs none of it."""
    module.HAVE_APEX = True


@after("apex", "nemo.collections.nlp.modules.common.megatron.build_model")
def _tensor_parallel_attributes(module: Any) -> None:
    """Megatron-core has Apex's function, under the same name."""
    from megatron.core.tensor_parallel import layers

    name = "set_defaults_if_not_set_tensor_model_parallel_attributes"
    setattr(module, name, getattr(layers, name))


@after("apex", "nemo.collections.nlp.modules.common.megatron.clip_grads")
def _gradient_norm(module: Any) -> None:
    """The norm over all gradients, as Apex's multi_tensor_l2norm gives it."""
    import torch

    def l2norm(kernel: None, overflow: Any, tensors: list[list[torch.Tensor]], per_tensor: bool) -> Any:
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors[0]])), None

    module.amp_C = types.SimpleNamespace(multi_tensor_l2norm=None)
    module.multi_tensor_applier = l2norm


@after("apex", "nemo.collections.nlp.modules.common.megatron.utils")
def _full_weights(module: Any) -> None:
    """Names that training without LoRA looks up to keep weight decay off the norms."""
    import torch

    module.listify_model = lambda model: model if isinstance(model, list) else [model]
    module.FusedLayerNorm = module.FastLayerNorm = torch.nn.LayerNorm
    module.MixedFusedRMSNorm = torch.nn.RMSNorm
