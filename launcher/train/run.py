"""One rank of one DPO trial: config.yaml in; metrics.jsonl, result.json and results/ out."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from launcher.check.steps import Plan
from launcher.sweep import metrics
from launcher.train import ownership, signals, watchdog
from launcher.train import result as results
from launcher.train.metrics_file import MetricsFile
from launcher.train.nemo_aligner import log_filter, settings, standins
from launcher.train.ranks import Device, Ranks, settle_cpu, settle_device


def run_trial(trial_dir: Path) -> dict[str, Any]:
    """Train one rank of the trial in `trial_dir`, in this process, which can do so once.

    Goes on from the last whole checkpoint where there is one. Returns the result, as in result.json; of a trial that
    was stopped before its last step (time limit, warning) {"stopped": why, "step": n}, and no result.json is written.
    Raises Refused where the config cannot be run; errors of NeMo's come through as they are, but for those of a rank
    whose peers have left before there was anything to save: it was stopped as well.
    """
    trial_dir = trial_dir.absolute()
    done = results.read_result(trial_dir / "result.json")
    if done is not None:
        print(f"{trial_dir} is done already, see result.json", flush=True)
        return done
    try:
        return _run(trial_dir)
    except Exception:
        note = signals.read_note(trial_dir)
        if note is None:
            raise
        traceback.print_exc()
        print(f"stopped, as the other ranks: {note['reason']}", flush=True)
        return {"stopped": note["reason"], "step": note["step"]}


def _run(trial_dir: Path) -> dict[str, Any]:
    config = settings.load(trial_dir)
    ranks = Ranks.from_environment()
    ranks.export()
    progress = MetricsFile(trial_dir / "metrics.jsonl" if ranks.rank == 0 else None)
    progress.phase(metrics.STARTING, "importing torch")
    watchdog.start(trial_dir, ranks.rank, progress, (config.get("cluster") or {}).get("hang_after"))
    log_filter.quiet()
    gaps = standins.install()
    device = settle_device(config.trainer.accelerator, config.trainer.precision)
    threads = settle_cpu(ranks) if device.accelerator == "cpu" else 0
    steps = settings.settle(config, trial_dir, ranks, device)
    progress.phase(metrics.STARTING, "importing NeMo")
    from launcher.train.nemo_aligner import session as training

    log_filter.files_only()
    progress.phase("loading model", Path(config.pretrained_checkpoint.restore_from_path).name)
    session = training.build(config, steps, progress)
    if ranks.rank == 0:
        print(_banner(config, steps, session, device, ranks, threads, gaps, trial_dir), flush=True)
    stopped = session.run()
    if stopped:
        step = session.trainer.step
        if ranks.rank == 0:
            progress.phase("stopped", f"{stopped}, at step {step}")
            signals.write_note(trial_dir, stopped, step)
        training.shut_down()
        return {"stopped": stopped, "step": step}
    from launcher.train.nemo_aligner.evaluate import evaluate

    evaluation = evaluate(session.model, config, session.held_out, progress)
    listener = signals.listener()
    if listener:
        listener.ignore()
    result: dict[str, Any] = {}
    if ranks.rank == 0:
        progress.phase("done")
        result = {**_result(config, session, device, ranks, trial_dir), "evaluation": evaluation}
        ownership.check(trial_dir)
        results.write_result(trial_dir / "result.json", result)
        print(f"done: {result['steps']} steps in {result['seconds']:.0f} s, {trial_dir / 'result.json'}", flush=True)
    training.shut_down()
    return result


def _banner(
    config: DictConfig,
    steps: Plan,
    session: Any,
    device: Device,
    ranks: Ranks,
    threads: int,
    gaps: tuple[str, ...],
    trial_dir: Path,
) -> str:
    model, dpo = config.model, config.model.dpo
    tuning = model.peft.lora_tuning
    share = session.trainable / session.parameters
    how = "all weights"
    if model.peft.peft_scheme == "lora":
        how = f"LoRA rank {tuning.adapter_dim}, alpha {tuning.get('alpha', tuning.adapter_dim):g}"
        how += f" on {', '.join(tuning.target_modules)}"
    epochs = steps.max_steps / steps.steps_per_epoch
    begin = f", from step {session.trainer.step}" if session.trainer.step else ""
    each = f" x {threads} thread{'s' * (threads > 1)}" if threads else ""
    rows = [
        ("beta", f"{dpo.ref_policy_kl_penalty:g} ({dpo.preference_loss} loss)"),
        ("model", f"{config.pretrained_checkpoint.restore_from_path}, {session.parameters:,} parameters"),
        ("trainable", f"{session.trainable:,}, {share:.2%} of them ({how})"),
        ("pairs", f"{session.pairs['train']} train, {session.pairs['validation']} validation"),
        ("steps", f"{steps.max_steps} of {model.global_batch_size} pairs ({epochs:.2g} epochs){begin}"),
        ("", f"validation every {steps.val_check_interval}, checkpoint every {steps.save_interval}"),
        ("precision", device.precision),
        ("device", f"{device.accelerator}, {device.name}"),
        ("ranks", f"{ranks.world_size}{each} on {ranks.nodes} node{'s' * (ranks.nodes > 1)}"),
        ("results", str(trial_dir)),
    ]
    if gaps:
        rows.append(("stand-ins", f"for {', '.join(gaps)}, missing here (launcher/train/nemo_aligner/standins.py)"))
    return "\n".join(["", *(f"  {name:<10} {value}" for name, value in rows), ""])


def _result(config: DictConfig, session: Any, device: Device, ranks: Ranks, trial_dir: Path) -> dict[str, Any]:
    return {
        "beta": float(config.model.dpo.ref_policy_kl_penalty),
        **results.summarise(metrics.read_all(trial_dir / "metrics.jsonl")),
        "pairs": session.pairs,
        "trainable_parameters": session.trainable,
        "parameters": session.parameters,
        "precision": device.precision,
        "device": f"{device.accelerator}, {device.name}",
        "ranks": ranks.world_size,
        "checkpoint": session.last_checkpoint(),
        "nemo": session.nemo_file(),
        "versions": results.versions(),
    }
