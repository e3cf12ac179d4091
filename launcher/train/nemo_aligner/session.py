"""The training itself, on NeMo-Aligner's public API; the order of calls is that of its examples' train_gpt_dpo.py.

Import this module only after launcher.train.nemo_aligner.standins.install().
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nemo.utils.callbacks.nemo_model_checkpoint import NeMoModelCheckpoint
from nemo.utils.exp_manager import exp_manager
from nemo_aligner.algorithms.dpo import dpo_custom_collate
from nemo_aligner.data.nlp.builders import (
    build_dataloader,
    build_train_valid_test_dpo_datasets,
    build_train_valid_test_dpo_packed_datasets,
    identity_collate,
)
from nemo_aligner.models.nlp.gpt.megatron_gpt_dpo_model import MegatronGPTDPOModel
from nemo_aligner.utils.train_script_utils import (
    add_custom_checkpoint_callback,
    extract_optimizer_scheduler_from_ptl_model,
    init_distributed,
    init_peft,
    init_using_ptl,
    resolve_and_create_trainer,
)
from nemo_aligner.utils.utils import retrieve_model_state_dict_in_cpu
from omegaconf import DictConfig, OmegaConf

from launcher.check.steps import Plan
from launcher.nemo import nemo_file
from launcher.sweep import checkpoints
from launcher.train import result as results
from launcher.train import signals
from launcher.train.metrics_file import MetricsFile, TrialLogger
from launcher.train.nemo_aligner import (
    base_model,
    baseline,
    checkpointing,
    event_files,
    origin,
    random_state,
    recompute,
    replicas,
    settings,
)
from launcher.train.nemo_aligner.savings import install
from launcher.train.nemo_aligner.savings.reference_cache import file_digest
from launcher.train.nemo_aligner.trainer import PreferenceTrainer
from launcher.train.timer import RunTimer, Stopped

if TYPE_CHECKING:
    from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec
    from nemo_aligner.data.nlp.datasets import DPOModelDataset

#: Given to NeMo's exp_manager in place of what the config has.
FROM_THE_START = {"resume_if_exists": False, "resume_from_checkpoint": None, "create_preemption_callback": False}


@dataclass
class AlignerSession:
    """A trial that is ready to train."""

    config: DictConfig
    model: MegatronGPTDPOModel
    trainer: PreferenceTrainer
    pairs: dict[str, int]
    held_out: Any
    """The validation pairs, as NeMo-Aligner's data set has them."""
    parameters: int
    """Of the base model, over all ranks; with the vocabulary as Megatron pads it."""
    trainable: int

    def run(self) -> str:
        """Baseline, training, last validation, save. Returns why it stopped before the last step, "" if it did not."""
        if self.trainer.step == 0:
            self._baseline()
        gc.collect()
        # After every step NeMo-Aligner collects garbage, 0.4 s over the two million objects that NeMo's import left.
        gc.freeze()
        owed = self.trainer.validate_owed() if self.trainer.state.validation_owed else None
        listener = signals.listener()
        if listener:
            listener.keep()
        # Nothing from here to the first step draws random numbers.
        restored = self.trainer.state.restore_random()
        if restored:
            self.trainer.progress.phase("loading model", restored)
        if owed is not None:
            self.trainer.save_owed(owed)
        try:
            self.trainer.fit()
        except Stopped as stopped:
            return str(stopped)
        if self.trainer.step < self.trainer.max_steps:
            return "no steps left in this epoch"
        self._finish_nemo_file()
        if listener:
            listener.leave()
        return ""

    def _finish_nemo_file(self) -> None:
        """Where training ends here, NeMo has just written it; a predecessor may have been stopped before it did."""
        params = self.config.exp_manager.checkpoint_callback_params
        callback = self.trainer.ckpt_callback
        if not (params.save_nemo_on_train_end and isinstance(callback, NeMoModelCheckpoint)):
            return
        path = Path(callback._format_nemo_checkpoint_name())
        self.trainer.progress.phase("saving", path.name)
        if self._lacks_nemo_file():
            self.model.save_to(str(path))
        if not checkpoints.is_whole(path, hashes=False):
            checkpointing.seal(path, self.trainer.state_dict())

    def _lacks_nemo_file(self) -> bool:
        """Rank 0's view, for all: only rank 0 writes the file, and the others may look before it is there."""
        lacks = torch.tensor([self.nemo_file() is None], dtype=torch.int32, device=torch.cuda.current_device())
        torch.distributed.broadcast(lacks, 0)
        return bool(lacks.item())

    def _baseline(self) -> None:
        fresh = self.config.model.peft.restore_from_path is None
        metrics = self.trainer.validate_baseline(whole=not fresh)
        if fresh and self.config.model.dpo.preference_loss == "dpo":
            baseline.check(self.config, metrics)

    def nemo_file(self) -> str | None:
        """The file NeMo writes at the end of training; with LoRA it holds only the adapters."""
        return _newest(self._checkpoints(), "*.nemo")

    def last_checkpoint(self) -> str | None:
        """Of all weights trained, optimizer states included, after the last step."""
        found = checkpoints.newest(self._checkpoints(), hashes=False)
        return str(found.path) if found else None

    def _checkpoints(self) -> Path:
        return Path(self.config.exp_manager.explicit_log_dir) / "checkpoints"


def build(config: DictConfig, steps: Plan, progress: MetricsFile) -> AlignerSession:
    """Load model, data, optimizer and, where there is one, the last checkpoint. `config` has been settled."""
    trial_dir = Path(config.exp_manager.explicit_log_dir).parent
    base_model.complete_config(config, trial_dir)
    # RunTimer keeps the time; Lightning's and NeMo's own timers would end the process without a checkpoint.
    max_time = config.exp_manager.max_time_per_run or config.trainer.max_time
    config.exp_manager.max_time_per_run = config.trainer.max_time = None
    lightning = resolve_and_create_trainer(config, "dpo")
    # What to go on from is found below, once rank 0 can tell the others: NeMo takes whatever has a checkpoint's name.
    exp_manager(lightning, {**settings.plain(config.exp_manager), **FROM_THE_START})
    model = base_model.load(config, lightning, trial_dir)
    init_peft(model, config.model)
    recompute.keep_gradients(model)
    if config.model.peft.peft_scheme == "none":
        o2 = config.model.get("megatron_amp_O2", False)
        model.ref_policy_state_dict = retrieve_model_state_dict_in_cpu(model, megatron_amp_O2=o2)
    init_distributed(lightning, model, config.model.get("transformer_engine", False))
    known = facts(config, steps)
    replicas.compare_facts(known)
    replicas.compare_weights(model, 0, frozen=True)
    replicas.compare_parts(model)
    restored = checkpointing.resume_point(config.exp_manager)
    state = checkpointing.CheckpointExtras(origin.of(config, model, known["data"]))
    lightning.callbacks.append(state)
    lightning.ckpt_path = str(restored.path) if restored else None

    progress.phase("loading model", "reading pairs")
    train_pairs, validation_pairs, collate = datasets(config.model, model.tokenizer)
    train_batches = batches(config, train_pairs, restored.consumed_samples if restored else 0)
    validation_batches = batches(config, validation_pairs, 0, use_random_sampler=False)
    progress.phase("loading model", "optimizer")
    init_using_ptl(lightning, model, train_batches, train_pairs)
    if restored is not None:
        own = restored.path.is_relative_to(config.exp_manager.explicit_log_dir)
        origin.check(state.restored_origin, state.origin, config, own)
    optimizer, scheduler = extract_optimizer_scheduler_from_ptl_model(model)
    callback = add_custom_checkpoint_callback(lightning, model)
    if progress.writes:
        validated = restored is not None and not state.validation_owed
        event_files.join(Path(config.exp_manager.explicit_log_dir), restored.step if restored else 0, validated)
    logger = TrialLogger(progress, lightning.loggers, config.trainer.log_every_n_steps, steps.max_steps, state.latest)
    logger.log_hyperparams(settings.plain(config))
    trainer = PreferenceTrainer(
        state=state,
        cfg=config.trainer.dpo,
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        train_dataloader=train_batches,
        val_dataloader=validation_batches,
        test_dataloader=None,
        collate_fn=collate,
        logger=logger,
        ckpt_callback=callback,
        run_timer=RunTimer(max_time, signals.listener()),
        pad_length_to_multiple_of=config.model.data.get("pad_length_to_multiple_of"),
    )
    if restored is not None:
        trainer.load_state_dict({"step": restored.step, "consumed_samples": restored.consumed_samples})
    if isinstance(callback, NeMoModelCheckpoint):
        checkpointing.keep_whole(callback, trainer.state_dict)
        if restored is not None:
            checkpointing.drop_orphans(callback, restored)
    lightning.ckpt_path = None  # NeMo would never remove the checkpoint that a trial was resumed from
    splits = {
        "train": install.Split(train_pairs, batches(config, train_pairs, 0), steps.max_steps),
        "validation": install.Split(validation_pairs, validation_batches, trainer.limit_val_batches),
    }
    with random_state.untouched():  # whether the reference was known already must not show in the dropout
        install.install(config, trainer, splits, progress)
    pairs = {"train": len(train_pairs), "validation": len(validation_pairs)}
    return AlignerSession(config, model, trainer, pairs, validation_pairs, *base_model.count_parameters(model))


def facts(config: DictConfig, steps: Plan) -> dict[str, Any]:
    """What every rank has read from its disk or decided by its hardware, and must have like the others."""
    trainer = config.trainer
    return {
        "trainer.accelerator": str(trainer.accelerator),
        "trainer.precision": str(trainer.precision),
        "steps": dataclasses.asdict(steps),
        "config.yaml": hashlib.sha256(OmegaConf.to_yaml(config, sort_keys=True).encode()).hexdigest()[:16],
        "base model": (nemo_file.read_record(Path(config.pretrained_checkpoint.restore_from_path)) or {}).get("source"),
        "data": {name: file_digest(Path(name)) for name in _files(config.model.data.data_prefix)},
        "packages": results.versions(),
    }


def _files(data_prefix: Any) -> list[str]:
    """The data files of all splits."""
    return sorted({str(name) for split in data_prefix.values() for name in split})


def datasets(model_config: DictConfig, tokenizer: TokenizerSpec) -> tuple[Any, Any, Any]:
    """Training pairs, validation pairs, and the function that makes a padded batch of them."""
    data = model_config.data
    packed = data.data_impl == "packed_jsonl"
    make = build_train_valid_test_dpo_packed_datasets if packed else build_train_valid_test_dpo_datasets
    train, validation, _ = make(
        cfg=model_config,
        data_prefix=data.data_prefix,
        data_impl=data.data_impl,
        splits_string=data.splits_string,
        train_valid_test_num_samples=[-model_config.global_batch_size] * 3,  # negative: all of them
        seq_length=data.seq_length,
        seed=model_config.seed,
        tokenizer=tokenizer,
    )
    collate = partial(
        train.global_collate_fn if packed else dpo_custom_collate,
        eos_id=tokenizer.eos_id,
        reset_position_ids=data.get("reset_position_ids", False),
        reset_attention_mask=data.get("reset_attention_mask", False),
        eod_mask_loss=data.get("eod_mask_loss", False),
    )
    return train, validation, collate


def batches(config: DictConfig, pairs: DPOModelDataset, consumed_samples: int, use_random_sampler: bool = True) -> Any:
    """Global batches of `pairs`, this rank's share of each, from the first not yet consumed on."""
    loader = build_dataloader(
        cfg=config,
        dataset=pairs,
        consumed_samples=consumed_samples,
        mbs=config.model.micro_batch_size,
        gbs=config.model.global_batch_size,
        load_gbs=True,
        pad_samples_to_global_batch_size=False,
        collate_fn=identity_collate,
        use_random_sampler=use_random_sampler,
    )
    # A loader draws a seed whenever it is iterated anew; from torch's own generator it would take what dropout draws.
    loader.generator = torch.Generator()
    return loader


def shut_down() -> None:
    """Leave together. Gloo has no orderly end: a rank that closes its connections first breaks its peers' last call,
    even a barrier, so the ranks take their leave over the store that they met at, which rank 0 keeps open to the last.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    store.set(f"finished/{rank}", "")
    store.wait([f"finished/{other}" for other in range(world_size)])
    torch.distributed.destroy_process_group()
    store.set(f"gone/{rank}", "")
    if rank == 0:
        store.wait([f"gone/{other}" for other in range(world_size)])


def _newest(folder: Path, pattern: str) -> str | None:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    return str(found[-1]) if found else None
