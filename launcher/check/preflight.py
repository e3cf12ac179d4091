"""Finds before a start what would fail in a running trial: rules between keys, files, folders. Imports no torch."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from launcher import gpus, units
from launcher.check import cost, disk, files, key_rules, memory, rewards, steps, throughput
from launcher.compose.trials import PlannedTrial
from launcher.findings import Finding, Refused
from launcher.nemo import base_model, lora
from launcher.trial_config.config import Split, TrialConfig


def findings(
    trials: Sequence[PlannedTrial], sweep_folder: Path | None, expected: Collection[Path] = ()
) -> list[Finding]:
    """Everything that is wrong with any trial, each finding once. `sweep_folder` is the folder to be made, if any.

    `expected` are files that will be made before a trial starts. They need not exist yet and are not checked.
    """
    unique: dict[Finding, None] = {}
    for trial in trials:
        unique.update(dict.fromkeys(_trial(trial.config, expected)))
    if sweep_folder:
        unique.update(dict.fromkeys(_writable(sweep_folder)))
    unique.update(dict.fromkeys(_room(trials, sweep_folder)[0]))
    return list(unique)


def warnings(trials: Sequence[PlannedTrial], sweep_folder: Path | None) -> list[Finding]:
    """What may go wrong but is not certain, each warning once. Warnings are printed and refuse nothing."""
    unique: dict[Finding, None] = {}
    for trial in trials:
        unique.update(dict.fromkeys(_trial_warnings(trial.config)))
    unique.update(dict.fromkeys(_room(trials, sweep_folder)[1]))
    unique.update(dict.fromkeys(_too_short(trials)))
    return list(unique)


def summary(config: TrialConfig, trials: int = 1) -> str:
    """What a checked sweep of `trials` trials will do, in a few lines: model, trained parameters, pairs, steps, ranks
    of each trial, and the cost.
    """
    base, trained_on = base_model.load(config.base_model), _rows(config, "train")
    plan = disk.trial_plan(config, trained_on)
    length = f"{plan.max_steps} steps" if plan else "steps"
    rhythm = f"validated every {plan.val_check_interval}, saved every {plan.save_interval}; " if plan else ""
    unit = "packs of pairs" if config.packed else "pairs"
    pairs = f"{trained_on} training {unit}, {_rows(config, 'validation')} held out" if plan else "do not exist yet"
    shape = f"{config.nodes} node{'s' * (config.nodes > 1)} x {config.ranks_per_node} ranks"
    needed = memory.per_gpu(base, config) if base and _on_gpus(config) else None
    return "\n".join(
        (
            f"  model      {config.base_model.name}{_trained(base, config)}",
            f"  data       {pairs}",
            f"  each trial {length} of {config.global_batch_size} pairs, {rhythm}{shape},"
            f" precision {config.trainer.precision}",
            *([f"  memory     about {needed}"] if needed else []),
            *([f"  cost       {costs}"] if (costs := cost_line(config, trials)) else []),
        )
    )


def cost_line(config: TrialConfig, trials: int = 1) -> str:
    """Tokens, padding and time of a sweep, as one line; "" if its data's lengths are unknown."""
    computed = cost.estimate(config, base_model.load(config.base_model), trials=trials)
    if computed is None:
        return ""
    speed = throughput.known(config)
    return cost.describe(computed, speed.positions if speed else None, speed.basis if speed else "")


def _too_short(trials: Sequence[PlannedTrial]) -> list[Finding]:
    """Time limits that cannot be enough for the slowest trial, or are too short at the speed of such trials here."""
    slowest: dict[str, tuple[float, Finding]] = {}
    for trial in trials:
        config, limit = trial.config, str(trial.config.cluster.time)
        computed = cost.estimate(config, base_model.load(config.base_model), trials=len(trials))
        if computed is None or config.cluster.time is None:
            continue
        speed = throughput.known(config)
        if speed:
            needed = cost.seconds(computed, speed.positions) + speed.overhead
            why = f"a trial takes about {units.estimate(needed)} {speed.basis}"
        else:
            needed = cost.least_seconds(computed) or 0.0
            why = f"a trial takes at least {units.estimate(needed)}, even if every rank were an H100 at its peak"
        if needed > max(config.cluster.time_limit_s, slowest[limit][0] if limit in slowest else 0.0):
            remedy = f"write at least {math.ceil(1.2 * needed / 60)} (minutes), or give it more ranks"
            slowest[limit] = needed, Finding("cluster.time", limit, why, remedy)
    return [finding for _, finding in slowest.values()]


def _trained(base: base_model.BaseModel | None, config: TrialConfig) -> str:
    """How many parameters are trained, and of how many; "" if the checkpoint's shape is unknown."""
    if not config.trains_adapters or base is None or not base.shaped:
        return ""
    tuning = config.model.peft.lora_tuning
    trained = lora.trainable_parameters(base.config, tuning)
    if not base.vocabulary:
        return f", {trained:,} trainable parameters"
    whole = lora.parameters(base.config, base.vocabulary)
    rank = f"LoRA rank {tuning.adapter_dim}, alpha {tuning.alpha:g}"
    return f", {trained:,} of {whole:,} parameters trained ({trained / whole:.1%}; {rank})"


def _rows(config: TrialConfig, split: Split) -> int:
    """Number of pairs, or of packs if they are packed: the unit of a global batch."""
    return _check(config)(config.data_files[split])[0]


def _trial(config: TrialConfig, expected: Collection[Path]) -> list[Finding]:
    problems = key_rules.findings(config)
    model_file, batch = config.base_model, config.global_batch_size
    damaged = [] if model_file in expected else _nemo_file(model_file)
    base = None if damaged or model_file in expected else base_model.load(model_file)
    problems += [*damaged, *(base_model.findings(base, config) if base else [])]
    rows: dict[Split, int] = {}
    for split, path in config.data_files.items():
        if path in expected:
            continue
        rows[split], bad_rows = _check(config)(path)
        problems += bad_rows
        if not bad_rows and rows[split] < batch:
            why = f"has {rows[split]} rows, fewer than model.global_batch_size={batch}; every file needs a batch"
            remedy = f"set model.global_batch_size to at most {rows[split]}, or add rows"
            problems.append(Finding(str(path), "", why, remedy))
    if rows.get("train", 0) >= batch:
        problems += _steps(config, rows["train"])
    if rows.get("validation", 0) >= batch:
        problems += _validation(config, rows["validation"])
    return problems


def _trial_warnings(config: TrialConfig) -> list[Finding]:
    problems = []
    base = base_model.load(config.base_model)
    if base is not None:
        problems += [*base_model.warnings(base, config), *memory.warnings(base, config, *_gpu_memory(config))]
    length, paths = config.longest_pair, config.data_files
    for path in (paths["train"], paths["validation"]):
        if rows := _longer(path, length):
            why = f"up to {rows} rows are longer than model.encoder_seq_length={length}; NeMo-Aligner skips them"
            remedy = f"prepare it with --max-tokens {length}, or raise model.encoder_seq_length"
            problems.append(Finding(str(path), "", why, remedy))
    return problems + rewards.warnings(config)


def _on_gpus(config: TrialConfig) -> bool:
    """Whether the trial is known to run on GPUs: the config asks Slurm for them, or this machine has them."""
    if config.trainer.accelerator == "cpu":
        return False
    return bool(_gpus_here()) if config.cluster.is_local else config.cluster.gpus > 0


def _gpu_memory(config: TrialConfig) -> tuple[float | None, str]:
    """(GiB of a GPU, the source of that number); None if it is unknown."""
    entered = config.cluster.gpu_memory_gb
    if not _on_gpus(config):
        return None, ""
    if entered is None and config.cluster.is_local:
        return min(_gpus_here()), "memory of this machine's GPUs"
    return entered, "cluster.gpu_memory_gb"


@functools.lru_cache(maxsize=1)
def _gpus_here() -> tuple[float, ...]:
    """Memory of each GPU of this machine, in GiB."""
    try:
        return tuple(gpu.memory_gib for gpu in gpus.query())
    except gpus.NoAnswer:  # then the trial itself decides what it runs on; `doctor` says what is wrong
        return ()


def _room(trials: Sequence[PlannedTrial], folder: Path | None) -> tuple[list[Finding], list[Finding]]:
    """(refusals, warnings) about the disk space for the checkpoints of all trials together."""
    written_by_trial = []
    for trial in trials:
        config = trial.config
        base, plan = base_model.load(config.base_model), disk.trial_plan(config, _rows(config, "train"))
        written = disk.checkpoints(base, config, plan) if base else None
        written_by_trial += [written] if written else []
    if not written_by_trial:
        return [], []
    config = trials[0].config
    at_once = config.cluster.array_parallelism or len(trials)
    return disk.room(written_by_trial, folder or Path(config.paths.runs), at_once)


def _steps(config: TrialConfig, train_rows: int) -> list[Finding]:
    try:
        plan = steps.trial_plan(config, train_rows)
    except Refused as refused:
        return refused.findings
    warmup = config.model.optim.sched.warmup_steps
    if warmup >= plan.max_steps:
        why = f"the trial has only {plan.max_steps} steps, so the learning rate would never reach its maximum"
        return [Finding("model.optim.sched.warmup_steps", str(warmup), why, f"write {max(0, plan.max_steps // 10)}")]
    return []


def _validation(config: TrialConfig, rows: int) -> list[Finding]:
    try:
        steps.validation_batches(rows, config.global_batch_size, config.trainer.dpo.limit_val_batches)
    except Refused as refused:
        return refused.findings
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


def _check(config: TrialConfig) -> Callable[[Path], tuple[int, list[Finding]]]:
    """The function that checks a file of pairs and returns (rows, findings)."""
    return _packed if config.packed else _jsonl


@functools.cache
def _longer(path: Path, tokens: int) -> int:
    return files.longer_rows(path, tokens)


_NAME_MAX = 255  # bytes; Linux and all its common file systems


def _writable(folder: Path) -> list[Finding]:
    """The sweep folder must not exist yet, and its nearest existing parent must be writable."""
    parent = disk.existing(folder.parent)
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        why, remedy = "has bytes that are not UTF-8 in its name", "choose another folder (paths.runs)"
        return [Finding("hydra.sweep.dir", str(folder), why, remedy)]
    if longest := max((part for part in folder.parts if len(os.fsencode(part)) > _NAME_MAX), key=len, default=""):
        why = f"a name of {len(os.fsencode(longest))} bytes is too long: a folder's name has {_NAME_MAX} at most"
        return [Finding("hydra.sweep.dir", str(folder), why, "choose a shorter one (experiment.name, paths.runs)")]
    if folder.exists():
        return [Finding("hydra.sweep.dir", str(folder), "exists already", "name another folder")]
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or _read_only(parent):
        return [Finding("paths.runs", str(folder), f"{parent} is not writable", "set paths.runs to a folder that is")]
    return []


def _read_only(folder: Path) -> bool:
    """Whether the file system is mounted read-only. os.access does not show that to root, the mount's flags do."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
