"""Turns a trial's config.yaml into NeMo-Aligner's config: resolves `auto`, and turns fractions into steps."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from launcher.check.steps import Plan, plan, validation_batches
from launcher.findings import Finding, Refused
from launcher.nemo import data_files
from launcher.sweep.trial import tracker_name
from launcher.train import deterministic
from launcher.train.ranks import Device, Ranks

#: NeMo's name for a cluster whose processes are started from outside and described by torch.distributed's variables;
#: with it Lightning launches nothing itself, and takes no notice of Slurm's variables (nor of a job named "bash").
RANKS_FROM_OUTSIDE = "BCP"


def configure(config: DictConfig, trial_dir: Path, ranks: Ranks, device: Device) -> Plan:
    """Write the values that only the job knows into `config`; returns the steps. Raises Refused."""
    trainer, model = config.trainer, config.model
    needed = trainer.num_nodes * trainer.devices
    if needed != ranks.world_size:
        why = f"with trainer.num_nodes={trainer.num_nodes} that is {needed} ranks, but {ranks.world_size} are running"
        raise Refused([Finding("trainer.devices", str(trainer.devices), why, "set WORLD_SIZE, RANK, ... accordingly")])
    steps = _plan(config)

    config.cluster_type = RANKS_FROM_OUTSIDE
    trainer.accelerator = device.accelerator
    trainer.precision = config.precision = model.precision = device.precision
    if config.get("deterministic"):
        deterministic.enable()
        model.deterministic_mode = True  # Megatron's embedding then avoids a backward pass with atomics
    if device.precision == "32":
        model.megatron_amp_O2 = False  # fp32 main copies of fp32 weights: NeMo's Float16Module refuses them
    trainer.dpo.max_steps = trainer.max_steps = steps.max_steps
    trainer.max_epochs = trainer.dpo.max_epochs
    trainer.dpo.val_check_interval = steps.val_check_interval
    trainer.dpo.save_interval = steps.save_interval
    if not config.exp_manager.explicit_log_dir:
        config.exp_manager.explicit_log_dir = str(trial_dir / "results")
    _name_runs(config.exp_manager, tracker_name(trial_dir))
    # With megatron_amp_O2, NeMo starts an asynchronous all-reduce for every micro batch and drops its handle
    # (nemo/core/optim/optimizer_with_main_params.py): nothing waits for it before clipping reads the gradients, and
    # where it fails, as gloo does in bf16, no error is raised and each rank trains on its own share. Without it,
    # NeMo-Aligner reduces once a step and waits (megatron_gpt_dpo_model.py, finish_training_step).
    model.async_grad_allreduce = False
    config.exp_manager.seconds_to_sleep = 0  # by all ranks but the first, which they wait for soon after anyway
    return steps


def _name_runs(manager: DictConfig, name: str) -> None:
    """W&B continues one run over all starts of a trial. At MLflow each start is a run, which has the name as a tag."""
    with open_dict(manager):
        if manager.create_wandb_logger:
            manager.wandb_logger_kwargs.id = manager.wandb_logger_kwargs.get("id") or name
        if manager.create_mlflow_logger:
            tags = manager.mlflow_logger_kwargs.get("tags") or {}
            manager.mlflow_logger_kwargs.tags = {**tags, "trial": name}


def _plan(config: DictConfig) -> Plan:
    dpo, batch = config.trainer.dpo, config.model.global_batch_size
    rows = count_rows(config.model.data)
    validation_batches(count_rows(config.model.data, "validation"), batch, dpo.get("limit_val_batches", 1.0))
    limit = dpo.get("limit_train_batches", 1.0)
    return plan(rows, batch, dpo.max_epochs, dpo.max_steps, dpo.val_check_interval, dpo.save_interval, limit)


def count_rows(data: DictConfig, split: str = "train") -> int:
    """The number of a split's pairs, or of packs. `data` is model.data. Raises Refused if they cannot be read."""
    names = [str(name) for name in data.data_prefix[split]]
    try:
        return data_files.count_rows(data_files.only_file(names), packed=data.data_impl == "packed_jsonl")
    except (OSError, ValueError) as error:
        why = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise Refused([Finding(f"{data_files.KEY}.{split}", ",".join(names), why, "prepare the data")]) from error


def plain(config: DictConfig) -> dict[str, object]:
    """The config as builtin dicts and lists, for loggers."""
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
