"""How many steps a trial takes, and at which steps it validates and saves. Preflight and training both use it."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.findings import Finding, Refused
from launcher.trial_config.config import TrialConfig

_AT_LEAST_ONE = "write a larger share, or 1 for one batch"


@dataclass(frozen=True)
class Plan:
    """All numbers are steps (optimizer updates). `max_steps` is the trial's last step, with all epochs and any cap."""

    steps_per_epoch: int
    max_steps: int
    val_check_interval: int
    save_interval: int


def plan(
    rows: int,
    global_batch_size: int,
    max_epochs: int = 1,
    max_steps: int = -1,
    val_check_interval: int | float = 0.1,
    save_interval: int | float = 0.1,
    limit_train_batches: int | float | None = 1.0,
) -> Plan:
    """Turn `rows` training pairs and the keys of `trainer.dpo` into steps.

    A float in (0, 1] is a fraction of an epoch, as in NeMo-Aligner's `val_check_interval`; this holds for
    `save_interval` too, which NeMo-Aligner itself takes in steps only. Fractions are rounded down, but to no less
    than one step (NeMo-Aligner would round 0.1 of 8 steps to 0 and never validate). `max_steps` < 0 means no cap.
    NeMo-Aligner asserts save_interval % val_check_interval == 0 in the middle of training
    (trainer_utils.check_progress); here that is refused up front, and a fraction is rounded to a multiple.

    `limit_train_batches` shortens an epoch to that many steps (int) or that share of them (float), as in NeMo-Aligner.

    Raises Refused with every finding.
    """
    per_epoch = _whole_batches(rows, global_batch_size, "training")
    if limit_train_batches is not None:
        per_epoch = limited(per_epoch, limit_train_batches)
    if per_epoch < 1:
        why = f"leaves no step of the {rows // global_batch_size} in an epoch"
        raise Refused([Finding("trainer.dpo.limit_train_batches", str(limit_train_batches), why, _AT_LEAST_ONE)])
    total = per_epoch * max_epochs
    if max_steps >= 0:
        total = min(total, max_steps)

    val = _in_steps(val_check_interval, per_epoch)
    save = _in_steps(save_interval, per_epoch)
    if val > 0 and save > 0:
        if isinstance(save_interval, float):
            save = max(val, save // val * val)
        elif save % val:
            raise Refused(
                [
                    Finding(
                        "trainer.dpo.save_interval",
                        str(save_interval),
                        f"not a multiple of trainer.dpo.val_check_interval={val_check_interval} ({val} steps)",
                        f"write {max(val, save // val * val)}, or the same fraction as val_check_interval",
                    )
                ]
            )
    return Plan(per_epoch, total, val, save)


def trial_plan(trial: TrialConfig, rows: int) -> Plan:
    """The steps of a trial with `rows` training pairs. Raises Refused with every finding."""
    loop = trial.trainer.dpo
    return plan(
        rows,
        trial.global_batch_size,
        loop.max_epochs,
        loop.max_steps,
        loop.val_check_interval,
        loop.save_interval,
        loop.limit_train_batches,
    )


def validation_batches(rows: int, global_batch_size: int, limit: int | float) -> int:
    """Global batches of a validation on `rows` pairs. Raises Refused where `limit` leaves none.

    NeMo-Aligner takes the mean over the batches, which fails on every rank once the model is loaded.
    """
    whole = _whole_batches(rows, global_batch_size, "validation")
    batches = limited(whole, limit)
    if batches < 1:
        why = f"leaves no batch of the {whole} that {rows} validation pairs make"
        raise Refused([Finding("trainer.dpo.limit_val_batches", str(limit), why, _AT_LEAST_ONE)])
    return batches


def _whole_batches(rows: int, global_batch_size: int, file: str) -> int:
    if rows < global_batch_size:
        why = f"the {file} file has only {rows} rows, fewer than one global batch"
        remedy = f"set it to at most {rows} or prepare more data"
        raise Refused([Finding("model.global_batch_size", str(global_batch_size), why, remedy)])
    return rows // global_batch_size


def limited(batches: int, limit: int | float) -> int:
    """At most `limit` batches (a whole number), or that share of them (a float), rounded down as in NeMo-Aligner."""
    return int(batches * min(limit, 1.0)) if isinstance(limit, float) else min(batches, limit)


def _in_steps(interval: int | float, steps_per_epoch: int) -> int:
    if isinstance(interval, float):
        return max(1, int(interval * steps_per_epoch))
    return interval
