"""Loading the base model: its config, its tokenizer, and its weights with one unpacked copy a node at most.

By default NeMo unpacks a .nemo file twice in every rank: for a model of 16 GB and eight ranks 128 GB of temporary
files at a time, and as much read from the shared disk. A .nemo that is a folder is read in place. A file is unpacked by
the first rank of each node, for all of them, and the copy is removed once they have loaded it.

Import only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from nemo.collections.nlp.parts.nlp_overrides import NLPSaveRestoreConnector
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils import parallel_state
from nemo_aligner.utils.utils import load_and_override_model_config, load_from_nemo
from omegaconf import DictConfig, OmegaConf

from launcher import units
from launcher.job.node_check import NodeUnfit
from launcher.nemo.gpt_config import DIVISION
from launcher.nemo.nemo_file import unpack_tokenizer
from launcher.train.nemo_aligner import fused_activation
from launcher.train.nemo_aligner.rotary import scale_frequencies

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_SPARE = 256 << 20  # bytes of temporary files that torch and NeMo need beside the copy
_POLL_S = 0.2


def complete_config(config: DictConfig, trial_dir: Path) -> None:
    """Merge the .nemo's own config into config.model, and give NeMo the tokenizer as a folder beside the trial."""
    path = Path(config.pretrained_checkpoint.restore_from_path)
    fixed = fused_activation.KEY in config.model or config.get("deterministic")
    config.model = OmegaConf.merge(DIVISION, config.model)
    config.model = load_and_override_model_config(str(path), config.model)
    if not fixed:
        fused_activation.leave_open(config.model)
    if str(config.model.tokenizer.type or "").startswith("nemo:"):
        config.model.tokenizer.type = str(unpack_tokenizer(path, trial_dir / "tokenizer"))
    # Data-parallel ranks each read a share of the weights and exchange them.
    config.model.dist_ckpt_parallel_load = config.model.get("dist_ckpt_parallel_load", True)


def load(config: DictConfig, lightning: Trainer, trial_dir: Path) -> MegatronGPTDPOModel:
    """The model with the base model's weights. Every rank has to call it."""
    with unpacked(Path(config.pretrained_checkpoint.restore_from_path), trial_dir) as folder:
        model = load_from_nemo(
            MegatronGPTDPOModel,
            config.model,
            lightning,
            strict=True,
            load_base_model_only=False,
            restore_path=str(folder),
        )
        torch.distributed.barrier()  # the copy has to stay until the last rank has read it
    scale_frequencies(model, config.model)
    fused_activation.switch_on(model)
    return model


@contextmanager
def unpacked(nemo: Path, trial_dir: Path) -> Iterator[Path]:
    """`nemo` as a folder: itself, or a copy that the first rank of this node makes and removes.

    The copy's name has the trial's, the node's and the start's in it, so that trials on one node do not share it, and
    what a killed start left is removed by the next one. Raises NodeUnfit if there is no room for it.
    """
    if nemo.is_dir():
        yield nemo
        return
    trial = hashlib.sha256(str(trial_dir.absolute()).encode()).hexdigest()[:12]
    # The node's name: where TMPDIR is a shared disk, the nodes of a trial must not remove each other's copies.
    prefix = f"dpo-launcher-{os.getuid()}-{trial}-{socket.gethostname()}-"
    folder = Path(tempfile.gettempdir()) / f"{prefix}{os.environ.get('TRIAL_ATTEMPT') or os.environ['MASTER_PORT']}"
    first = os.environ["LOCAL_RANK"] == "0"
    if first:
        for left in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(left)
        _unpack(nemo, folder, prefix)
    while not folder.exists():  # if the first rank fails, this one is ended with it
        time.sleep(_POLL_S)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    try:
        yield folder
    finally:
        if first:
            shutil.rmtree(folder)


def _unpack(nemo: Path, folder: Path, prefix: str) -> None:
    size, free = nemo.stat().st_size + _SPARE, shutil.disk_usage(folder.parent).free
    if free < size:
        raise NodeUnfit(
            f"{folder.parent} has {units.size(free)} left, and unpacking {nemo.name} takes {units.size(size)}: set "
            "TMPDIR to a disk with more room, or unpack the .nemo with tar -xf and name its folder in "
            "pretrained_checkpoint.restore_from_path: a folder is read in place"
        )
    beside = Path(tempfile.mkdtemp(prefix=f"{prefix}part-", dir=folder.parent))
    NLPSaveRestoreConnector._unpack_nemo_file(str(nemo), str(beside))
    os.rename(beside, folder)


def count_parameters(model: MegatronGPTDPOModel) -> tuple[int, int]:
    """(of the base model, trainable), over all tensor- and pipeline-parallel ranks. LoRA adapters are extra."""
    frozen = trainable = 0
    for parameter in model.parameters():
        sharded = getattr(parameter, "tensor_model_parallel", False)
        count = parameter.numel() * (parallel_state.get_tensor_model_parallel_world_size() if sharded else 1)
        if parameter.requires_grad:
            trainable += count
        else:
            frozen += count
    counts = torch.tensor([frozen, trainable], dtype=torch.int64, device=torch.cuda.current_device())
    torch.distributed.all_reduce(counts, group=parallel_state.get_pipeline_model_parallel_group())
    frozen, trainable = (int(count) for count in counts)
    return (frozen if model.use_peft else frozen + trainable), trainable
