"""What many ranks and one have to agree in: runs of 10 steps whose ranks write down their weights at the end."""

from __future__ import annotations

import itertools
import os
import shutil
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.minimal_trial import write_pairs, write_trial
from tests.integration.test_training import in_file_order

STEPS = 10
KEYS = {
    "trainer.dpo.max_steps": STEPS,
    "trainer.dpo.val_check_interval": STEPS,
    "trainer.dpo.save_interval": STEPS,
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": False,
    "model.micro_batch_size": 1,
    "model.global_batch_size": 4,
    "model.encoder_seq_length": 128,
    "evaluation": {"kl_pairs": 0, "samples": 0, "sample_tokens": 0},
}
MODELS = {
    "tiny": {"LoRA": {"model.optim.lr": 5e-3}, "all": {"model.optim.lr": 5e-3}},
    "smollm2_135m": {
        "LoRA": {"model.optim.lr": 5e-4, "model.peft.lora_tuning.adapter_dim": 12},  # which three ranks can divide
        "all": {"model.optim.lr": 2e-5},
    },
}


@dataclass(frozen=True)
class Cell:
    """A run: what is trained, in which precision, on how many ranks."""

    model: str
    precision: str
    weights: str
    """Trained: "LoRA" or "all"."""
    ranks: int = 1
    tensor: int = 1
    """Of these, how many hold one copy of the model together."""
    rows: bool = False
    """Whether pairs share rows. If not, a sequence's rounding does not depend on the other pairs of its rank."""

    def __str__(self) -> str:
        layout = f"TP {self.tensor} x {self.ranks // self.tensor}" if self.tensor > 1 else f"{self.ranks} ranks"
        return ", ".join([self.model, self.precision, self.weights, layout, *(["rows"] if self.rows else [])])

    def changes(self) -> dict[str, Any]:
        return {
            **KEYS,
            **MODELS[self.model][self.weights],
            "model.peft.peft_scheme": "lora" if self.weights == "LoRA" else "none",
            "trainer.precision": self.precision,
            "trainer.devices": self.ranks,
            "model.tensor_model_parallel_size": self.tensor,
            "compute.share_prompt": self.rows,
        }


@dataclass(frozen=True)
class Run:
    """What is left of a trial: the losses, and what its ranks hold."""

    losses: Mapping[str, Mapping[int, float]]
    """"train/loss" and "val/loss" -> step -> loss."""
    weights: list[dict[str, Any]]
    """Of each rank: name -> trained weight."""
    shared: set[str]
    """Names of weights of which every tensor-parallel rank holds a copy."""

    def farthest(self, other: Run) -> float:
        """The largest difference between two losses of one step."""
        pairs = [(mine, other.losses[key]) for key, mine in self.losses.items()]
        assert all(mine.keys() == theirs.keys() for mine, theirs in pairs)
        return max(abs(mine[step] - theirs[step]) for mine, theirs in pairs for step in mine)


def run(train: Any, nemo: Path, folder: Path, cell: Cell) -> Run:
    """Train it. Fails where a rank does, and where a reduction was started and not waited for."""
    folder.mkdir()
    held_out = write_pairs(folder / "validation.jsonl", 8, start=100)
    pairs = {"train": write_pairs(folder / "train.jsonl", 4 * STEPS), "validation": held_out, "test": held_out}
    trial = write_trial(folder / "trial", cell.model, nemo, pairs, cell.changes())
    done = train(trial, cell.ranks, recorded, {"WEIGHTS": folder, "OMP_NUM_THREADS": 1})
    assert done.exit_codes == [0] * cell.ranks, done.said()

    import torch

    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(cell.ranks)]
    losses = {key: done.values(key) for key in ("train/loss", "val/loss")}
    shutil.rmtree(folder)  # all weights of SmolLM2 and of its optimizer are 2 GB
    return Run(losses, [rank["weights"] for rank in ranks], set(ranks[0]["shared"]))


def recorded() -> None:
    """Pairs in the file's order; adapters that start alike however they are divided; every rank's weights in a file at
    the end; no reduction that nobody waits for.
    """
    in_file_order()
    _start_alike()
    left = _watch_reductions()
    from launcher.train.nemo_aligner.trainer import PreferenceTrainer

    fit = PreferenceTrainer.fit

    def and_write(self: Any) -> None:
        import torch

        fit(self)
        assert not left(), f"{left()} reductions were started and never waited for"
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        shared = [n for n, p in self.model.named_parameters() if not getattr(p, "tensor_model_parallel", False)]
        state = {"weights": trained, "shared": [name for name in shared if name in trained]}
        torch.save(state, Path(os.environ["WEIGHTS"]) / f"{os.environ['RANK']}.pt")

    PreferenceTrainer.fit = and_write


def _start_alike() -> None:
    """Tensor-parallel ranks draw other adapters than one rank does: here each gets its part of those of one rank."""
    import torch

    from launcher.train.nemo_aligner import session

    add_adapters = session.init_peft

    def and_draw(model: Any, config: Any) -> None:
        from nemo_aligner.utils import parallel_state

        add_adapters(model, config)
        rank, size = (
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_tensor_model_parallel_world_size(),
        )
        generator = torch.Generator().manual_seed(1)
        for name, weight in model.named_parameters():
            if "adapter" not in name or not weight.any():  # the second matrix starts at zero
                continue
            axis, shape = weight.partition_dim, list(weight.shape)
            shape[axis] *= size
            whole = torch.empty(shape).normal_(std=shape[1] ** -0.5, generator=generator)
            with torch.no_grad():
                weight.copy_(whole.chunk(size, axis)[rank])

    session.init_peft = and_draw


def _watch_reductions() -> Callable[[], int]:
    """Counts reductions that were started and not yet waited for."""
    import torch

    reduce = torch.distributed.all_reduce
    pending: set[int] = set()
    numbers = itertools.count()

    def watched(*args: Any, **kwargs: Any) -> Any:
        handle = reduce(*args, **kwargs)
        if not kwargs.get("async_op"):
            return handle
        wait, number = handle.wait, next(numbers)
        pending.add(number)

        def waited() -> None:  # Megatron's layers start one in backward, and wait for it there
            wait()
            pending.discard(number)

        return types.SimpleNamespace(wait=waited)

    torch.distributed.all_reduce = watched
    return lambda: len(pending)
