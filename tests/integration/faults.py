"""What can befall a rank, as functions to run in it before it trains (`change` of conftest's Ranks)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def signal_after(step: int, rank: int = 0, number: int = signal.SIGUSR2) -> None:
    """The rank is warned while it makes its `step`th step."""
    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    _before(PreferenceTrainer, "train_single_step", lambda self: self.step == step - 1 and _mine(rank), number)


def signal_in_validation(step: int, rank: int = 0) -> None:
    """The rank is warned in the validation after `step` steps."""
    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    _before(PreferenceTrainer, "validation_step", lambda self: self.step == step and _mine(rank), signal.SIGUSR2)


def signal_in_save(step: int, rank: int = 0) -> None:
    """The rank is warned, and once more, while it saves its `step`th step, which is one to save at."""
    from launcher.train.nemo_aligner import checkpointing

    def due(path: Any, counters: Any) -> bool:
        return counters["step"] == step and _mine(rank)

    _before(checkpointing, "seal", due, signal.SIGUSR2)
    _before(checkpointing, "seal", due, signal.SIGTERM)


def kill_at(step: int, rank: int = 0) -> None:
    """The rank dies at the beginning of its `step`th step."""
    signal_after(step, rank, signal.SIGKILL)


def another_base_model(rank: int = 0) -> None:
    """The rank loads one that differs in a norm."""
    import torch

    from launcher.train.nemo_aligner import base_model

    load = base_model.load_from_nemo

    def load_another(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        if _mine(rank):
            with torch.no_grad():
                next(p for name, p in model.named_parameters() if "norm" in name)[5] += 1.0
        return model

    base_model.load_from_nemo = load_another


def the_part_of_rank_0(rank: int = 0) -> None:
    """The tensor-parallel rank loads another one's part of the base model."""
    import torch

    from launcher.train.nemo_aligner import base_model

    load = base_model.load_from_nemo

    def load_another(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        for weight in model.parameters():
            other = weight.detach().clone()
            torch.distributed.broadcast(other, 0)
            if _mine(rank):
                with torch.no_grad():
                    weight.copy_(other)
        return model

    base_model.load_from_nemo = load_another


def stand_still_at(step: int, rank: int = 0) -> None:
    """The rank is stopped, as by a debugger."""
    signal_after(step, rank, signal.SIGSTOP)


def kill_in_save(step: int, moment: str, last: bool) -> None:
    """All ranks die while they save the best checkpoint of a step (or its `last`): "half" written, "unsealed", or
    with the old one not "pruned".
    """
    from launcher.sweep import checkpoints
    from launcher.train.nemo_aligner import checkpointing

    def due(path: Any) -> bool:
        return f"step={step}-" in str(path) and ("-last" in str(path)) == last

    if moment == "half":
        from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

        whole = TorchCheckpointIO.save_checkpoint

        def half(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            whole(self, checkpoint, path, storage_options)
            if due(path):
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        TorchCheckpointIO.save_checkpoint = half
    elif moment == "unsealed":
        _before(checkpointing, "seal", lambda path, counters: due(path), signal.SIGKILL)
    else:
        sealed = checkpoints.write_manifest

        def then_die(path: Any, *args: Any) -> None:
            sealed(path, *args)
            if due(path):
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.write_manifest = then_die


def fail_to_save(step: int) -> None:
    """The disk is full while the checkpoint of a step is written."""
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    whole = TorchCheckpointIO.save_checkpoint

    def full(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        if f"step={step}-" in str(path):
            with open(path, "wb") as stream:
                stream.write(b"half of it")
            raise OSError(28, "No space left on device", str(path))
        whole(self, checkpoint, path, storage_options)

    TorchCheckpointIO.save_checkpoint = full


def kill_before_nemo_file() -> None:
    """The rank dies after the last checkpoint, while NeMo writes the .nemo."""
    from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel

    def half(self: Any, save_path: str, *args: Any) -> None:
        with open(save_path, "wb") as stream:
            stream.write(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    MegatronGPTDPOModel.save_to = half


def signal_in_evaluation(rank: int = 0) -> None:
    """The rank is warned in the evaluation after training."""
    from launcher.train.nemo_aligner import evaluate

    _before(evaluate, "evaluate", lambda *args: _mine(rank), signal.SIGUSR2)


def signal_while_loading(rank: int = 0) -> None:
    """The rank is warned before its ranks have met."""
    from launcher.train.nemo_aligner import base_model

    _before(base_model, "load_from_nemo", lambda *args, **kwargs: _mine(rank), signal.SIGUSR2)


def _mine(rank: int) -> bool:
    return os.environ["RANK"] == str(rank)


def _before(owner: Any, name: str, due: Callable[..., bool], number: int) -> None:
    real = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        count = due.__code__.co_argcount
        if due(*args[:count]) if count else due(*args, **kwargs):
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    setattr(owner, name, watched)
