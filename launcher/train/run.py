"""Runs one rank of one trial. Reads config.yaml; writes metrics.jsonl, result.json and results/. The engine trains."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from launcher.findings import Finding, Refused
from launcher.sweep import metrics, result_file
from launcher.train import engine, ownership, result, signals, watchdog
from launcher.train.engine import JobConfig, Session
from launcher.train.metrics_file import MetricsFile
from launcher.train.ranks import Ranks

_RANK_0_PATIENCE_S = 10.0


def run_trial(trial_dir: Path) -> dict[str, object]:
    """Train one rank of the trial in `trial_dir`, in this process. A process can do this only once.

    Resumes from the last complete checkpoint, if there is one. Returns the result, as in result.json. If the trial was
    stopped before its last step (time limit, warning), returns {"stopped": why, "step": n} and writes no result.json.
    Raises Refused if the config cannot be run. The engine's errors are raised unchanged, with one exception: if other
    ranks stopped before there was anything to save, an error in this rank counts as stopped too.
    """
    trial_dir = trial_dir.absolute()
    done = result.read_result(trial_dir / "result.json")
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
        if Ranks.from_environment().rank == 0:  # another rank left before this one, which had begun, could hear of it
            metrics.append_phase(trial_dir / "metrics.jsonl", "stopped", f"{note['reason']}, as the other ranks")
        print(f"stopped, as the other ranks: {note['reason']}", flush=True)
        return {"stopped": note["reason"], "step": note["step"]}


def load_config(trial_dir: Path) -> DictConfig:
    """Load config.yaml of a trial. Raises Refused if there is none."""
    path = trial_dir / "config.yaml"
    if not path.is_file():
        raise Refused([Finding(str(path), "", "no such file", "name a trial's folder, such as SWEEP/0")])
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _run(trial_dir: Path) -> dict[str, object]:
    config = load_config(trial_dir)
    ranks = Ranks.from_environment()
    ranks.export()
    progress = MetricsFile(trial_dir / "metrics.jsonl" if ranks.rank == 0 else None)
    watchdog.start(trial_dir, ranks.rank, progress, (config.get("cluster") or {}).get("hang_after"))
    trained_by = engine.load(config)
    job = trained_by.configure(config, trial_dir, ranks, progress)
    session = trained_by.build(job, trial_dir, progress)
    if ranks.rank == 0:
        print(_banner(session, job, ranks, trial_dir), flush=True)
    stopped = session.run()
    if stopped:
        step = session.step
        if ranks.rank == 0:
            progress.phase("stopped", f"{stopped}, at step {step}")
            signals.write_note(trial_dir, stopped, step)
        trained_by.shut_down()
        return {"stopped": stopped, "step": step}
    if ranks.rank == 0:
        ownership.check(trial_dir)
        result_file.write_trained(trial_dir, _outcome(session, job, ranks, trial_dir))
    evaluation = _evaluate(session, progress, ranks, trial_dir)
    listener = signals.listener()
    if listener:
        listener.ignore()
    if ranks.rank == 0:
        progress.phase("done")
        ownership.check(trial_dir)
        outcome = _outcome(session, job, ranks, trial_dir)
        result_file.write_result(trial_dir, outcome, evaluation)
        print(f"done: {outcome['steps']} steps in {outcome['seconds']:.0f} s, {trial_dir / 'result.json'}", flush=True)
    trained_by.shut_down()
    return {**outcome, "evaluation": evaluation} if ranks.rank == 0 else {}


def _evaluate(session: Session, progress: MetricsFile, ranks: Ranks, trial_dir: Path) -> dict[str, object]:
    """The session's evaluation. Training is complete by now, so an error here does not fail the trial.

    If only this rank failed, the others would wait for it in a collective. So it records the result and raises: the
    exit code of a failed rank makes srun, or the local controller, end the others.
    """
    try:
        return session.evaluate(progress)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        if ranks.world_size > 1:
            ownership.check(trial_dir)
            # Rank 0 may be a moment behind with the file that says that training is complete.
            patience = time.monotonic() + _RANK_0_PATIENCE_S
            while not result_file.finish_without_evaluation(trial_dir, f"rank {ranks.rank}: {why}"):
                if time.monotonic() > patience:
                    break
                time.sleep(0.1)
            raise
        traceback.print_exc()
        return {"failed": True, "skipped": f"it failed: {' '.join(why.split())}"[:400]}


def _banner(session: Session, job: JobConfig, ranks: Ranks, trial_dir: Path) -> str:
    threads = f" x {job.threads} thread{'s' * (job.threads > 1)}" if job.threads else ""
    rows = {
        **session.banner(),
        "precision": job.device.precision,
        "device": f"{job.device.accelerator}, {job.device.name}",
        "ranks": f"{ranks.world_size}{threads} on {ranks.nodes} node{'s' * (ranks.nodes > 1)}",
        "results": str(trial_dir),
        **job.notes,
    }
    return "\n".join(["", *(f"  {title:<10} {text}" for title, text in rows.items()), ""])


def _outcome(session: Session, job: JobConfig, ranks: Ranks, trial_dir: Path) -> dict[str, object]:
    return {
        **result.summarise(metrics.read_all(trial_dir / "metrics.jsonl")),
        **session.facts(),
        "precision": job.device.precision,
        "device": f"{job.device.accelerator}, {job.device.name}",
        "ranks": ranks.world_size,
    }
