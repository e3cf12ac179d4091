"""What may be set: every key a trial's config may hold, with its type, its bounds and its unit.

The keys are NeMo-Aligner 0.7's own (its examples' gpt_dpo.yaml and documentation), so the launcher's files stay
readable next to NVIDIA's; `experiment`, `cluster` and `paths` are the launcher's. Defaults stand in configs/.
Keys that other NeMo files have and NeMo-Aligner's DPO does not are answered with the key to use instead (HABITS).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from launcher.compose.fields import (
    Field,
    anything,
    choice,
    fixed,
    flag,
    integer,
    interval,
    is_time_limit,
    lines,
    number,
    numbers,
    text,
    texts,
)
from launcher.findings import Finding

_KEEP_OUT = "NeMo-Aligner drives the loop itself"

FIELDS: dict[str, Field] = {
    "trainer.num_nodes": integer(1, "nodes of one trial"),
    "trainer.devices": integer(1, "ranks a node"),
    "trainer.accelerator": choice("auto", "gpu", "cpu"),
    "trainer.precision": choice("auto", "bf16", "bf16-mixed", "32", 32, doc="auto: bf16 where it is fast"),
    "trainer.log_every_n_steps": integer(1, "steps between two TensorBoard points where NeMo asks for it"),
    "trainer.max_time": text("DD:HH:MM:SS after which the trial saves and leaves", null=True),
    "trainer.max_epochs": integer(1),
    "trainer.max_steps": integer(-1),
    "trainer.logger": fixed(False, "exp_manager makes the loggers"),
    "trainer.enable_checkpointing": fixed(False, "exp_manager makes the checkpoints"),
    "trainer.use_distributed_sampler": fixed(False, _KEEP_OUT),
    "trainer.dpo.max_epochs": integer(1, "passes over the training pairs"),
    "trainer.dpo.max_steps": integer(1, "cap on optimizer steps over all epochs", also=(-1,)),
    "trainer.dpo.val_check_interval": interval("how often to validate"),
    "trainer.dpo.save_interval": interval("how often to save; a multiple of val_check_interval"),
    "trainer.dpo.limit_train_batches": number("global batches an epoch (whole) or their share", above=0),
    "trainer.dpo.limit_val_batches": number("global batches a validation (whole) or their share", above=0),
    "trainer.dpo.gradient_clip_val": number("largest gradient norm", minimum=0, also=(None,)),
    "exp_manager.explicit_log_dir": fixed(None, "the launcher gives every trial its own folder; use paths.runs"),
    "exp_manager.exp_dir": fixed(None, "the launcher gives every trial its own folder; use paths.runs"),
    "exp_manager.name": text("first part of the checkpoints' names"),
    "exp_manager.max_time_per_run": text("follows trainer.max_time", null=True),
    "exp_manager.create_tensorboard_logger": flag(),
    "exp_manager.create_wandb_logger": flag("Weights & Biases"),
    "exp_manager.wandb_logger_kwargs.*": anything(),
    "exp_manager.create_mlflow_logger": flag("MLflow"),
    "exp_manager.mlflow_logger_kwargs.*": anything(),
    "exp_manager.resume_from_checkpoint": text("a checkpoint to go on from", null=True),
    "exp_manager.resume_if_exists": flag(),
    "exp_manager.resume_ignore_no_checkpoint": flag(),
    "exp_manager.create_checkpoint_callback": flag(),
    "exp_manager.checkpoint_callback_params.monitor": text("what decides which checkpoint is best"),
    "exp_manager.checkpoint_callback_params.save_top_k": integer(1, "checkpoints kept", also=(-1,)),
    "exp_manager.checkpoint_callback_params.mode": choice("min", "max"),
    "exp_manager.checkpoint_callback_params.always_save_nemo": flag(),
    "exp_manager.checkpoint_callback_params.save_nemo_on_train_end": flag(),
    "exp_manager.checkpoint_callback_params.filename": text(),
    "exp_manager.checkpoint_callback_params.model_parallel_size": integer(1),
    "pretrained_checkpoint.restore_from_path": text("the base model, a .nemo file"),
    "precision": anything("follows trainer.precision"),
    "model.mcore_gpt": fixed(True, "the only implementation NeMo-Aligner trains"),
    "model.micro_batch_size": integer(1, "pairs a rank computes at once"),
    "model.global_batch_size": integer(1, "pairs a step, over all ranks"),
    "model.megatron_amp_O2": flag("keep fp32 main copies of the trained weights"),
    "model.tensor_model_parallel_size": integer(1),
    "model.pipeline_model_parallel_size": integer(1),
    "model.sequence_parallel": flag(),
    "model.encoder_seq_length": integer(8, "tokens, prompt and response together"),
    "model.seed": integer(0),
    "model.hidden_dropout": number(minimum=0, below=1),
    "model.attention_dropout": number(minimum=0, below=1),
    "model.activations_checkpoint_granularity": choice("full", "selective", None),
    "model.activations_checkpoint_method": choice("uniform", "block", None),
    "model.activations_checkpoint_num_layers": integer(1, also=(None,)),
    "model.transformer_engine": flag(),
    "model.dpo.ref_policy_kl_penalty": number("beta, the weight of the KL term (Rafailov et al. 2023, eq. 7)", above=0),
    "model.dpo.log_prob_forward_micro_batch_size": integer(1, "pairs the reference policy computes at once"),
    "model.dpo.preference_average_log_probs": flag(),
    "model.dpo.sft_average_log_probs": flag(),
    "model.dpo.gt_reward_scale": number(),
    "model.dpo.preference_loss": choice("dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl"),
    "model.dpo.preference_loss_weight": number(minimum=0),
    "model.dpo.sft_loss_weight": number(minimum=0),
    "model.peft.peft_scheme": choice("lora", "none"),
    "model.peft.restore_from_path": text(null=True),
    "model.peft.restore_from_ckpt.checkpoint_dir": text(null=True),
    "model.peft.restore_from_ckpt.checkpoint_name": text(null=True),
    "model.peft.lora_tuning.target_modules": texts("HF's seven projections or NeMo's fused modules"),
    "model.peft.lora_tuning.adapter_dim": integer(1, "rank of the adapters"),
    "model.peft.lora_tuning.alpha": number("adapters are scaled by alpha / adapter_dim", above=0),
    "model.peft.lora_tuning.adapter_dropout": number(minimum=0, below=1),
    "model.peft.lora_tuning.column_init_method": choice("xavier", "zero", "normal", "kaiming"),
    "model.peft.lora_tuning.row_init_method": choice("xavier", "zero", "normal", "kaiming"),
    "model.peft.lora_tuning.layer_selection": anything("a list of layers, counted from 1; null: all"),
    "model.peft.lora_tuning.weight_tying": flag(),
    "model.peft.lora_tuning.position_embedding_strategy": text(null=True),
    "model.optim.name": choice("fused_adam", "adamw", "distributed_fused_adam", "mcore_distributed_optim"),
    "model.optim.lr": number("highest learning rate", above=0),
    "model.optim.weight_decay": number(minimum=0),
    "model.optim.betas": numbers(2, "Adam's two decay rates (not DPO's beta)", below=1),
    "model.optim.eps": number(above=0),
    "model.optim.bucket_cap_mb": integer(1, "distributed_fused_adam only"),
    "model.optim.overlap_grad_sync": flag("distributed_fused_adam only"),
    "model.optim.overlap_param_sync": flag("distributed_fused_adam only"),
    "model.optim.contiguous_grad_buffer": flag("distributed_fused_adam only"),
    "model.optim.sched.name": choice(
        "CosineAnnealing", "WarmupHoldPolicy", "WarmupAnnealing", "InverseSquareRootAnnealing"
    ),
    "model.optim.sched.warmup_steps": integer(0, "steps"),
    "model.optim.sched.constant_steps": integer(0, "steps at min_lr at the end"),
    "model.optim.sched.min_lr": number(minimum=0),
    "model.optim.sched.max_steps": integer(1, "length of the schedule; the trial's own where not given", also=(None,)),
    "model.data.data_impl": choice("jsonl", "packed_jsonl"),
    "model.data.splits_string": fixed(None, "train, validation and test are files of their own"),
    "model.data.seq_length": integer(8, "tokens; follows model.encoder_seq_length"),
    "model.data.pad_length_to_multiple_of": integer(1, also=(None,)),
    "model.data.skip_warmup": flag(),
    "model.data.num_workers": integer(0),
    "model.data.reset_position_ids": flag(),
    "model.data.reset_attention_mask": flag(),
    "model.data.eod_mask_loss": flag(),
    "model.data.index_mapping_dir": text(null=True),
    "model.data.append_eod": flag("end each response with the end-of-text token"),
    "model.data.data_prefix.train": texts(".jsonl files"),
    "model.data.data_prefix.validation": texts(".jsonl files"),
    "model.data.data_prefix.test": texts(".jsonl files"),
    "model.data.default_chosen_reward": number(),
    "model.data.default_rejected_reward": number(),
    "model.overwrite_base_config.*": anything(),
    "evaluation.kl_pairs": integer(0, "held-out pairs for the exact KL"),
    "evaluation.samples": integer(0, "prompts answered greedily by policy and reference"),
    "evaluation.sample_tokens": integer(0, "tokens of each such answer"),
    "compute.cache_reference": flag("keep the reference policy's log-probabilities in paths.cache"),
    "compute.cut_padding": flag("cut each micro batch to its own longest pair"),
    "compute.length_multiple": integer(1, "tokens that a micro batch's length is rounded up to", also=(None,)),
    "compute.skip_prompt_logits": flag("compute logits at the response's positions alone"),
    "experiment.name": text("names the sweep's folder and job"),
    "experiment.hypotheses": Field(
        "a list of {beta, name, claim}",
        lambda v: isinstance(v, list) and all(isinstance(h, dict) and {"beta", "name", "claim"} <= set(h) for h in v),
    ),
    "paths.models": text("folder of .nemo files"),
    "paths.data": text("folder of data sets"),
    "paths.runs": text("folder of sweeps"),
    "paths.cache": text("folder of the reference policy's log-probabilities"),
    "wait": flag("on Slurm: stay and watch until all trials have ended"),
    "cluster.name": text(),
    "cluster.trials_at_once": integer(1, "trials side by side on this machine", also=(None,)),
    "cluster.memory_gb_per_rank": number("GB that a rank takes at its peak", above=0),
    "cluster.partition": text(null=True),
    "cluster.account": text(null=True),
    "cluster.qos": text(null=True),
    "cluster.constraint": text(null=True),
    "cluster.reservation": text(null=True),
    "cluster.time": Field("minutes, or D-HH:MM:SS", is_time_limit, "time limit of one trial"),
    "cluster.nodelist": text(null=True),
    "cluster.exclude": text(null=True),
    "cluster.exclusive": choice(True, False, None, "user", "mcs"),
    "cluster.mail_type": text(null=True),
    "cluster.mail_user": text(null=True),
    "cluster.comment": text(null=True),
    "cluster.gpus_per_node": integer(1, "follows trainer.devices", also=(None,)),
    "cluster.cpus_per_task": integer(1, also=(None,)),
    "cluster.mem_gb": number("GB a node", above=0, also=(None,)),
    "cluster.gpu_memory_gb": number("GiB of one GPU; for a warning only", above=0, also=(None,)),
    "cluster.tokens_per_second": number("training tokens a second and rank, for estimates", above=0, also=(None,)),
    "cluster.trials_per_node": integer(1, "trials of one node each that an array's element runs side by side"),
    "cluster.array_parallelism": integer(1, "trials that may run at once"),
    "cluster.signal_delay_s": integer(1, "seconds between the warning and the time limit"),
    "cluster.requeue": flag("go on in the same job; false: in a new one, which waits its turn anew"),
    "cluster.max_restarts": integer(0, "starts after a crash, a hang, or too little memory"),
    "cluster.max_timeouts": integer(0, "starts after a time limit"),
    "cluster.max_node_failures": integer(0, "starts after a node was lost or found unfit"),
    "cluster.hang_after": number("seconds without a step that are a hang; null: as measured", above=0, also=(None,)),
    "cluster.setup": lines("shell lines before srun"),
    "cluster.teardown": lines("shell lines after srun"),
    "cluster.srun_args": lines("arguments for srun"),
    "cluster.python": text("shell words that run Python in the job", null=True),
    "cluster.environment.*": anything(),
    "cluster.sbatch.*": anything(),
    "cluster.container.runtime": choice("pyxis", "apptainer", None),
    "cluster.container.image": text(null=True),
    "cluster.container.mounts": lines("folders the container sees: PATH or OUTSIDE:INSIDE"),
}

# Keys that need not be there; all others have to be, so that a deleted one is noticed here and not on the cluster.
OPTIONAL = {
    "model.sequence_parallel", "model.hidden_dropout", "model.attention_dropout", "model.transformer_engine",
    "model.activations_checkpoint_granularity", "model.activations_checkpoint_method",
    "model.activations_checkpoint_num_layers", "model.optim.eps", "model.optim.bucket_cap_mb",
    "model.optim.overlap_grad_sync", "model.optim.overlap_param_sync", "model.optim.contiguous_grad_buffer",
    "model.optim.sched.max_steps", "model.data.pad_length_to_multiple_of",
}  # fmt: skip

# Habits from other NeMo files (SFT, NeMo-Framework-Launcher, HF) -> what to use here.
HABITS: dict[str, str] = {
    "model.restore_from_path": "use pretrained_checkpoint.restore_from_path",
    "model.data.train_ds": "use model.data.data_prefix.train=[FILE]",
    "model.data.validation_ds": "use model.data.data_prefix.validation=[FILE]",
    "model.data.test_ds": "use model.data.data_prefix.test=[FILE]",
    "model.dpo.loss_type": "use model.dpo.preference_loss (dpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl)",
    "model.dpo.beta": "use model.dpo.ref_policy_kl_penalty",
    "model.peft.lora_tuning.dropout": "use model.peft.lora_tuning.adapter_dropout",
    "model.peft.lora_tuning.rank": "use model.peft.lora_tuning.adapter_dim",
    "model.peft.lora_tuning.r": "use model.peft.lora_tuning.adapter_dim",
    "lora_tuning.dropout": "use model.peft.lora_tuning.adapter_dropout",
    "lora_tuning": "use model.peft.lora_tuning",
    "trainer.val_check_interval": "use trainer.dpo.val_check_interval",
    "trainer.save_interval": "use trainer.dpo.save_interval",
    "trainer.limit_val_batches": "use trainer.dpo.limit_val_batches",
    "trainer.limit_train_batches": "use trainer.dpo.limit_train_batches",
    "trainer.gradient_clip_val": "use trainer.dpo.gradient_clip_val",
    "trainer.gpus": "use trainer.devices",
    "model.data.seq_len": "use model.encoder_seq_length",
    "model.optim.sched.warmup_ratio": "use model.optim.sched.warmup_steps",
}


def check(config: dict[str, Any], forced: frozenset[str] = frozenset()) -> list[Finding]:
    """Hold one trial's resolved config against the schema; returns every finding, none where all is well.

    `forced` are keys the user added with Hydra's own `+` or `++`: under `model.` these may be ones that the schema
    does not know, since NeMo hands them to the base model's config.
    """
    findings = []
    seen = set()
    for key, value in leaves(config):
        field = _field(key)
        if field is None:
            if not (key.startswith("model.") and _covered(key, forced)):
                findings.append(_unknown(key, value))
            continue
        seen.add(key)
        if value == "???":
            findings.append(Finding(key, "", "has no value", f"give one: {key}=..., {field.allows}"))
        elif not field.accepts(value):
            findings.append(Finding(key, _shown(value), f"must be {field.allows}", field.doc))
    for key in FIELDS:
        if key not in seen and not key.endswith(".*") and key not in OPTIONAL and _root_present(key, config):
            findings.append(Finding(key, "", "is missing", "do not delete it; it has no default elsewhere"))
    return findings


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; a dict that the schema knows as one value, and every list, is a leaf."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in FIELDS:
            yield from leaves(value, key + ".")
        elif not isinstance(value, dict) or key in FIELDS:
            yield key, value


def known_keys() -> list[str]:
    return [key for key in FIELDS if not key.endswith(".*")]


def _field(key: str) -> Field | None:
    found = FIELDS.get(key)
    while found is None and "." in key:
        key = key.rpartition(".")[0]
        found = FIELDS.get(key + ".*")
    return found


def _covered(key: str, forced: frozenset[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in forced)


def _root_present(key: str, config: dict[str, Any]) -> bool:
    """`cluster.trials_at_once` is a key of cluster=local only: a key is asked for where its siblings stand."""
    return key.split(".")[0] != "cluster" or key == "cluster.name"


def _unknown(key: str, value: Any) -> Finding:
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        habit = HABITS.get(".".join(parts[:end]))
        if habit:
            return Finding(key, _shown(value), "NeMo-Aligner's DPO has no such key", habit)
    near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.75)
    if not near:  # the right name in the wrong place
        near = [known for known in known_keys() if known.rpartition(".")[2] == parts[-1]][:1]
    remedy = f"did you mean {near[0]}?" if near else "see launcher/compose/schema.py for all keys"
    return Finding(key, _shown(value), "no such key", remedy)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)[:80]
