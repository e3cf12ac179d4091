"""What would fail once a trial runs and can be known before: rules between keys, files, folders. No torch here."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from launcher import gpus, machine, units
from launcher.check import cost, disk, files, memory, rewards, steps, throughput
from launcher.compose.trials import TrialConfig, is_weight
from launcher.findings import Finding, Refused
from launcher.nemo import base_model, lora
from launcher.slurm.rows import duration


def findings(
    trials: Sequence[TrialConfig], sweep_folder: Path | None, expected: Collection[Path] = ()
) -> list[Finding]:
    """Everything that is wrong with any trial, each finding once; `sweep_folder` is the one to be made, if any.

    `expected` are files that will be made before a trial starts: they need not be there, and are not looked at.
    """
    found: dict[Finding, None] = {}
    for trial in trials:
        found.update(dict.fromkeys(_trial(trial.config, expected)))
    if sweep_folder:
        found.update(dict.fromkeys(_writable(sweep_folder)))
    found.update(dict.fromkeys(_room(trials, sweep_folder)[0]))
    return list(found)


def warnings(trials: Sequence[TrialConfig], sweep_folder: Path | None) -> list[Finding]:
    """What may go wrong, and cannot be known: each once, for people; nothing is refused for it."""
    found: dict[Finding, None] = {}
    for trial in trials:
        found.update(dict.fromkeys(_trial_warnings(trial.config)))
    found.update(dict.fromkeys(_room(trials, sweep_folder)[1]))
    found.update(dict.fromkeys(_too_short(trials)))
    return list(found)


def summary(config: dict[str, Any], trials: int = 1) -> str:
    """What a checked sweep of so many trials is about to do, in a few lines: model, trained parameters, pairs, steps,
    ranks of each trial, and what they cost.
    """
    model, trainer = config["model"], config["trainer"]
    base = Path(config["pretrained_checkpoint"]["restore_from_path"])
    rows = {split: _rows(config, split) for split in ("train", "validation")}
    plan = disk.trial_plan(config, rows["train"])
    length = f"{plan.max_steps} steps" if plan else "steps"
    rhythm = f"validated every {plan.val_check_interval}, saved every {plan.save_interval}; " if plan else ""
    unit = "packs of pairs" if model["data"]["data_impl"] == "packed_jsonl" else "pairs"
    pairs = f"{rows['train']} training {unit}, {rows['validation']} held out" if plan else "not there yet"
    shape = f"{trainer['num_nodes']} node{'s' * (trainer['num_nodes'] > 1)} x {trainer['devices']} ranks"
    needed = memory.per_gpu(loaded, config) if (loaded := base_model.load(base)) and _on_gpus(config) else None
    return "\n".join(
        (
            f"  model      {base.name}{_trained(base, model)}",
            f"  data       {pairs}",
            f"  each trial {length} of {model['global_batch_size']} pairs, {rhythm}{shape},"
            f" precision {trainer['precision']}",
            *([f"  memory     about {needed}"] if needed else []),
            *([f"  cost       {costs}"] if (costs := cost_line(config, trials)) else []),
        )
    )


def cost_line(config: dict[str, Any], trials: int = 1) -> str:
    """Tokens, padding and time of a sweep; "" where its data's lengths are not known."""
    computed = cost.estimate(config, _base(config), cost.way(config), trials)
    if computed is None:
        return ""
    speed = throughput.known(config)
    return cost.describe(computed, speed.positions if speed else None, speed.said if speed else "")


def _too_short(trials: Sequence[TrialConfig]) -> list[Finding]:
    """Time limits that cannot be enough, or are not at the speed that trials like these have."""
    found = []
    for limit, like in {str(t.config["cluster"].get("time")): t.config for t in trials}.items():
        seconds = duration(limit) if "time" in like["cluster"] else None
        computed = cost.estimate(like, _base(like), cost.way(like), len(trials)) if seconds else None
        if seconds is None or computed is None:
            continue
        speed = throughput.known(like)
        if speed:
            needed = cost.seconds(computed, speed.positions) + speed.overhead
            why = f"a trial takes about {units.estimate(needed)} {speed.said}"
        else:
            needed = cost.least_seconds(computed) or 0.0
            why = f"a trial takes {units.estimate(needed)} at the very least, were every rank an H100 at its peak"
        if needed > seconds:
            remedy = f"write at least {math.ceil(1.2 * needed / 60)} (minutes), or give it more ranks"
            found.append(Finding("cluster.time", limit, why, remedy))
    return found


def _base(config: dict[str, Any]) -> base_model.BaseModel | None:
    return base_model.load(Path(config["pretrained_checkpoint"]["restore_from_path"]))


def _trained(base: Path, model: dict[str, Any]) -> str:
    """How many parameters are trained, of how many; nothing where the checkpoint does not say its shape."""
    loaded = base_model.load(base)
    if model["peft"]["peft_scheme"] != "lora" or loaded is None or not loaded.shaped:
        return ""
    shape, vocabulary = loaded.config, loaded.vocabulary
    tuning = model["peft"]["lora_tuning"]
    trained = lora.trainable_parameters(shape, tuning)
    if not vocabulary:
        return f", {trained:,} trainable parameters"
    whole = lora.parameters(shape, vocabulary)
    rank = f"LoRA rank {tuning['adapter_dim']}, alpha {tuning['alpha']:g}"
    return f", {trained:,} of {whole:,} parameters trained ({trained / whole:.1%}; {rank})"


def _rows(config: dict[str, Any], split: str) -> int:
    """Pairs, or packs of them: what a global batch is counted in."""
    check = _check(config)
    return sum(check(Path(name))[0] for name in config["model"]["data"]["data_prefix"][split])


def _trial(config: dict[str, Any], expected: Collection[Path]) -> list[Finding]:
    found = [*_parallel(config), *_packs(config), *_optimizer(config)]
    model_file = Path(config["pretrained_checkpoint"]["restore_from_path"])
    damaged = [] if model_file in expected else _nemo_file(model_file)
    base = None if damaged or model_file in expected else base_model.load(model_file)
    found += [*damaged, *(base_model.findings(base, config) if base else [])]
    rows: dict[str, int] = {}
    for split, names in config["model"]["data"]["data_prefix"].items():
        if any(Path(name) in expected for name in names):
            continue
        split_rows = 0
        for name in names:
            if is_weight(name) and len(names) > 1:
                continue  # a blend: [weight, file, weight, file, ...]
            count, problems = _check(config)(Path(name))
            split_rows += count
            found += problems
        rows[split] = split_rows
        batch = config["model"]["global_batch_size"]
        if not any(str(Path(n)) in f.where for f in found for n in names) and split_rows < batch:
            why = f"has {split_rows} rows, fewer than model.global_batch_size={batch}; every file needs a batch"
            found.append(
                Finding(names[0], "", why, f"set model.global_batch_size to at most {split_rows}, or add rows")
            )
    if rows.get("train", 0) >= config["model"]["global_batch_size"]:
        found += _steps(config, rows["train"])
    return found


def _trial_warnings(config: dict[str, Any]) -> list[Finding]:
    found = []
    base = _base(config)
    if base is not None:
        found += [*base_model.warnings(base, config), *memory.warnings(base, config, *_gpu_memory(config))]
    length = config["model"]["encoder_seq_length"]
    for split in ("train", "validation"):
        for name in config["model"]["data"]["data_prefix"][split]:
            if rows := _longer(Path(name), length):
                why = f"up to {rows} rows are longer than model.encoder_seq_length={length}; NeMo-Aligner skips them"
                remedy = f"prepare it with --max-tokens {length}, or raise model.encoder_seq_length"
                found.append(Finding(name, "", why, remedy))
    return found + rewards.warnings(config)


def _on_gpus(config: dict[str, Any]) -> bool:
    """Whether the trial is known to run on GPUs: asked of Slurm, or there on this machine."""
    if config["trainer"]["accelerator"] == "cpu":
        return False
    if config["cluster"]["name"] == "local":
        return bool(_gpus_here())
    return bool(config["cluster"].get("gpus_per_node"))


def _gpu_memory(config: dict[str, Any]) -> tuple[float | None, str]:
    """(GiB of a GPU, what says so); None where it is not known."""
    told = config["cluster"].get("gpu_memory_gb")
    if not _on_gpus(config):
        return None, ""
    if told is None and config["cluster"]["name"] == "local":
        return min(_gpus_here()), "memory of this machine's GPUs"
    return told, "cluster.gpu_memory_gb"


@functools.lru_cache(maxsize=1)
def _gpus_here() -> tuple[float, ...]:
    """GiB of each."""
    try:
        return tuple(gpu.memory_gib for gpu in gpus.query())
    except gpus.NoAnswer:  # the trial itself decides then what it runs on; `doctor` says what is wrong
        return ()


def _room(trials: Sequence[TrialConfig], folder: Path | None) -> tuple[list[Finding], list[Finding]]:
    """(refusals, warnings) about the disk that all trials' checkpoints take together."""
    each = []
    for trial in trials:
        config = trial.config
        base = _base(config)
        rows = _rows(config, "train")
        written = disk.checkpoints(base, config, disk.trial_plan(config, rows)) if base else None
        each += [written] if written else []
    if not each:
        return [], []
    config = trials[0].config
    at_once = config["cluster"].get("array_parallelism") or len(trials)
    return disk.room(each, folder or Path(config["paths"]["runs"]), at_once)


def _parallel(config: dict[str, Any]) -> list[Finding]:
    model, trainer = config["model"], config["trainer"]
    world = trainer["num_nodes"] * trainer["devices"]
    tensor, pipeline = model["tensor_model_parallel_size"], model["pipeline_model_parallel_size"]
    micro, batch = model["micro_batch_size"], model["global_batch_size"]
    shape = f"trainer.num_nodes={trainer['num_nodes']} x trainer.devices={trainer['devices']} = {world} ranks"
    if world % (tensor * pipeline):
        why = f"x model.pipeline_model_parallel_size={pipeline} does not divide {shape}"
        return [Finding("model.tensor_model_parallel_size", str(tensor), why, "choose sizes whose product divides it")]
    data_parallel = world // (tensor * pipeline)
    found = []
    if batch % (micro * data_parallel):
        multiple = micro * data_parallel
        near = max(1, round(batch / multiple)) * multiple
        why = f"is no multiple of model.micro_batch_size={micro} x {data_parallel} data-parallel ranks ({shape})"
        found.append(Finding("model.global_batch_size", str(batch), why, f"write {near}"))
    else:
        share, forward = batch // data_parallel, model["dpo"]["log_prob_forward_micro_batch_size"]
        if share % forward:
            why = f"does not divide a rank's {share} pairs of the global batch of {batch}"
            remedy = f"write {math.gcd(share, forward)}"
            found.append(Finding("model.dpo.log_prob_forward_micro_batch_size", str(forward), why, remedy))
    if model.get("sequence_parallel") and (model["data"]["pad_length_to_multiple_of"] or 1) % tensor:
        why = f"model.sequence_parallel needs lengths divisible by model.tensor_model_parallel_size={tensor}"
        found.append(Finding("model.data.pad_length_to_multiple_of", "", why, f"write {tensor}"))
    return found


def _packs(config: dict[str, Any]) -> list[Finding]:
    """What NeMo-Aligner's packed pairs need (model.data.data_impl=packed_jsonl)."""
    impl, micro = config["model"]["data"]["data_impl"], config["model"]["micro_batch_size"]
    if impl != "packed_jsonl":
        return []
    found = []
    if micro != 1:
        why = f"packed pairs are read one pack at a time (model.data.data_impl={impl})"
        found.append(Finding("model.micro_batch_size", str(micro), why, "write 1"))
    accelerator = config["trainer"]["accelerator"]
    if accelerator == "cpu" or (accelerator == "auto" and config["cluster"]["name"] == "local" and not machine.gpus()):
        # Megatron's own attention refuses packs; Transformer Engine's has no CPU kernels.
        why = "needs Transformer Engine's attention, which runs on GPUs only, and this trial runs on the CPU"
        found.append(Finding("model.data.data_impl", impl, why, "write jsonl, and name the .jsonl files"))
    return found


def _optimizer(config: dict[str, Any]) -> list[Finding]:
    model = config["model"]
    name, scheme = model["optim"]["name"], model["peft"]["peft_scheme"]
    found = []
    if scheme == "lora" and name in ("distributed_fused_adam", "mcore_distributed_optim"):
        why = "does not train LoRA adapters: NeMo refuses it" if name.startswith("dist") else "does not learn with LoRA"
        found.append(Finding("model.optim.name", name, why, "write model.optim.name=fused_adam"))
    if not name.startswith("distributed"):
        for key in ("bucket_cap_mb", "overlap_grad_sync", "overlap_param_sync", "contiguous_grad_buffer"):
            if key in model["optim"]:
                value = str(model["optim"][key])
                why = f"is a key of distributed_fused_adam; {name} does not take it"
                found.append(Finding(f"model.optim.{key}", value, why, f"drop it: ~model.optim.{key}"))
    if model["optim"]["sched"]["min_lr"] > model["optim"]["lr"]:
        why = f"is above model.optim.lr={model['optim']['lr']:g}"
        found.append(Finding("model.optim.sched.min_lr", f"{model['optim']['sched']['min_lr']:g}", why, "lower it"))
    return found


def _steps(config: dict[str, Any], train_rows: int) -> list[Finding]:
    dpo = config["trainer"]["dpo"]
    try:
        plan = steps.plan(
            train_rows,
            config["model"]["global_batch_size"],
            dpo["max_epochs"],
            dpo["max_steps"],
            dpo["val_check_interval"],
            dpo["save_interval"],
            dpo.get("limit_train_batches", 1.0),
        )
    except Refused as refused:
        return refused.findings
    warmup = config["model"]["optim"]["sched"]["warmup_steps"]
    if warmup >= plan.max_steps:
        why = f"the trial has only {plan.max_steps} steps, so the learning rate would never reach its height"
        return [Finding("model.optim.sched.warmup_steps", str(warmup), why, f"write {max(0, plan.max_steps // 10)}")]
    return []


@functools.cache
def _nemo_file(path: Path) -> list[Finding]:
    return files.check_nemo(path)


@functools.cache
def _jsonl(path: Path) -> tuple[int, list[Finding]]:
    return files.check_jsonl(path)


@functools.cache
def _packed(path: Path) -> tuple[int, list[Finding]]:
    return files.check_packed(path)


def _check(config: dict[str, Any]) -> Callable[[Path], tuple[int, list[Finding]]]:
    """What looks into a file of pairs: (rows, findings)."""
    return _packed if config["model"]["data"]["data_impl"] == "packed_jsonl" else _jsonl


@functools.cache
def _longer(path: Path, tokens: int) -> int:
    return files.longer_rows(path, tokens)


def _writable(folder: Path) -> list[Finding]:
    """The sweep folder must not be there yet, and the nearest folder above it that is there must take it."""
    if folder.exists():
        return [Finding("hydra.sweep.dir", str(folder), "is there already", "name another folder")]
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or _read_only(parent):
        return [Finding("paths.runs", str(folder), f"{parent} is not writable", "set paths.runs to a folder that is")]
    return []


def _read_only(folder: Path) -> bool:
    """Root passes os.access on a read-only file system; the mount's flags tell the truth."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
