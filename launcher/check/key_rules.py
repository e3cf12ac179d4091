"""Rules between the keys of one trial's config, for which no file has to be read."""

from __future__ import annotations

import math

from launcher import machine
from launcher.engines import ENGINES
from launcher.findings import Finding
from launcher.nemo.gpt_config import DIVISION
from launcher.trial_config.config import TrialConfig


def findings(config: TrialConfig) -> list[Finding]:
    return [*_divided(config), *_parallel(config), *_packs(config), *_optimizer(config)]


#: Ways to divide the work that were never tried with this engine, each with the reason. All need Transformer Engine or
#: NeMo's distributed optimizer, and so GPUs.
_NOT_DIVIDED = {
    "context_parallel_size": "the checks count ranks without it, rows of pairs and the evaluation do not know it",
    "expert_model_parallel_size": "Llama has no experts",
    "virtual_pipeline_model_parallel_size": "a rank then holds several models, where adapters are looked for in one",
    "fsdp": "it divides weights that adapters and checkpoints expect whole",
}


def _divided(config: TrialConfig) -> list[Finding]:
    problems = []
    for key, why in _NOT_DIVIDED.items():
        plain = DIVISION[key]
        value = config.model_keys.get(key, plain)
        if value != plain and config.engine in ENGINES:
            remedy = f"drop it, or write {'null' if plain is None else str(plain).lower()}; to divide a model that"
            remedy += " does not fit into a GPU: model.tensor_model_parallel_size"
            problems.append(Finding(f"model.{key}", str(value).lower(), f"is not supported: {why}", remedy))
    return problems


def _parallel(config: TrialConfig) -> list[Finding]:
    model = config.model
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    micro, batch = model.micro_batch_size, config.global_batch_size
    shape = f"trainer.num_nodes={config.nodes} x trainer.devices={config.ranks_per_node} = {config.ranks} ranks"
    if config.ranks % config.model_parallel_ranks:
        why = f"x model.pipeline_model_parallel_size={pipeline} does not divide {shape}"
        return [Finding("model.tensor_model_parallel_size", str(tensor), why, "choose sizes whose product divides it")]
    data_parallel = config.data_parallel_ranks
    problems = []
    if batch % (micro * data_parallel):
        multiple = micro * data_parallel
        near = max(1, round(batch / multiple)) * multiple
        why = f"is not a multiple of model.micro_batch_size={micro} x {data_parallel} data-parallel ranks ({shape})"
        problems.append(Finding("model.global_batch_size", str(batch), why, f"write {near}"))
    else:
        share, forward = batch // data_parallel, model.dpo.log_prob_forward_micro_batch_size
        if share % forward:
            why = f"does not divide {share}, a rank's share of the global batch of {batch} pairs"
            remedy = f"write {math.gcd(share, forward)}"
            problems.append(Finding("model.dpo.log_prob_forward_micro_batch_size", str(forward), why, remedy))
    if model.sequence_parallel and (model.data.pad_length_to_multiple_of or 1) % tensor:
        why = f"model.sequence_parallel needs lengths divisible by model.tensor_model_parallel_size={tensor}"
        problems.append(Finding("model.data.pad_length_to_multiple_of", "", why, f"write {tensor}"))
    return problems


def _packs(config: TrialConfig) -> list[Finding]:
    """Findings on what NeMo-Aligner's packed pairs need (model.data.data_impl=packed_jsonl)."""
    impl, micro = config.model.data.data_impl, config.model.micro_batch_size
    if not config.packed:
        return []
    problems = []
    if micro != 1:
        why = f"packed pairs are read one pack at a time (model.data.data_impl={impl})"
        problems.append(Finding("model.micro_batch_size", str(micro), why, "write 1"))
    if config.model.data.append_eod:
        # DPOPackedDataset gives the stored tokens as they are, and prepare_data.py stores no end.
        why = f"does nothing to packed pairs, whose tokens are stored (model.data.data_impl={impl})"
        remedy = "write false, and prepare the pairs with --prompt-format llama3 or chat, which end each response; or"
        remedy += " write model.data.data_impl=jsonl, and name the .jsonl files"
        problems.append(Finding("model.data.append_eod", "true", why, remedy))
    accelerator = config.trainer.accelerator
    if accelerator == "cpu" or (accelerator == "auto" and config.cluster.is_local and not machine.gpus()):
        # Megatron's own attention refuses packs; Transformer Engine's has no CPU kernels.
        why = "needs Transformer Engine's attention, which runs on GPUs only, and this trial runs on the CPU"
        problems.append(Finding("model.data.data_impl", impl, why, "write jsonl, and name the .jsonl files"))
    return problems


def _optimizer(config: TrialConfig) -> list[Finding]:
    optim = config.model.optim
    name = optim.name
    problems = []
    if config.trains_adapters and name in ("distributed_fused_adam", "mcore_distributed_optim"):
        why = "does not train LoRA adapters: NeMo refuses it" if name.startswith("dist") else "does not learn with LoRA"
        problems.append(Finding("model.optim.name", name, why, "write model.optim.name=fused_adam"))
    if not name.startswith("distributed"):
        for key in ("bucket_cap_mb", "overlap_grad_sync", "overlap_param_sync", "contiguous_grad_buffer"):
            if key in optim.model_fields_set:
                value = str(getattr(optim, key))
                why = f"is a key of distributed_fused_adam; {name} does not have it"
                problems.append(Finding(f"model.optim.{key}", value, why, f"drop it: ~model.optim.{key}"))
    if optim.sched.min_lr > optim.lr:
        why = f"is above model.optim.lr={optim.lr:g}"
        problems.append(Finding("model.optim.sched.min_lr", f"{optim.sched.min_lr:g}", why, "lower it"))
    return problems
