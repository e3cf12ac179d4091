"""From a sweep folder to what the report shows. Everything is read anew, at any moment: what is not there is None."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.report import figures
from launcher.report.ending_table import standard_error
from launcher.report.figures import Figure
from launcher.sweep import metrics
from launcher.sweep.folder import Sweep, Trial, labels

MEASURES = ("loss", "accuracy", "margin", "drift", "kl")
_LEFT_OUT = ("cluster.", "paths.", "exp_manager.", "experiment.", "wait")  # they say where, not what


@dataclass(frozen=True)
class Point:
    """A validation."""

    step: int
    loss: float | None
    accuracy: float | None
    margin: float | None
    drift: float | None


@dataclass(frozen=True)
class Cost:
    """What a trial took. Seconds of wall time."""

    seconds: float | None
    """Of all starts, without the gaps between them."""
    ranks: int | None
    device: str
    """"gpu", "cpu", "" where nobody said."""
    waited: float | None
    """From its first submission to its first word; trials that run one after the other wait for each other."""
    restarts: int

    @property
    def hours(self) -> float | None:
        """Rank-hours: of GPUs, or of processes on a CPU."""
        return None if self.seconds is None or self.ranks is None else self.seconds * self.ranks / 3600


@dataclass(frozen=True)
class TrialReport:
    """One trial."""

    trial: Trial
    label: str
    """What tells it apart besides beta."""
    done: bool
    state: str
    why: str
    """Why there is no result; "" where there is one."""
    step: int | None
    max_steps: int | None
    pairs: int | None
    """Held-out pairs that its validations took."""
    loss: Figure | None
    accuracy: Figure | None
    margin: Figure | None
    chosen: Figure | None
    rejected: Figure | None
    drift: Figure | None
    kl: Figure | None
    history: tuple[Point, ...]
    per_pair: Mapping[str, list[float]] | None
    samples: tuple[Mapping[str, Any], ...]
    skipped: str
    """Why its evaluation was skipped; "" where it was not."""
    cost: Cost
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`beta 0.05`, with what else tells it apart."""
        own = f"beta {self.trial.beta:g}" if self.trial.beta is not None else f"trial {self.trial.number}"
        return " ".join(filter(None, (own, self.label)))

    def figure(self, measure: str) -> Figure | None:
        """One of MEASURES."""
        found: Figure | None = getattr(self, measure)
        return found


@dataclass(frozen=True)
class Report:
    """A sweep at one moment."""

    sweep: Sweep
    made: float
    """Seconds since the epoch."""
    trials: tuple[TrialReport, ...]
    """By beta, then number."""
    per: str
    """What log-ratios are counted by: "response", or "token" with model.dpo.preference_average_log_probs."""
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    """(config key, its value in each trial) where the trials' configs differ."""
    troubles: tuple[str, ...] = field(default=())

    @property
    def done(self) -> list[TrialReport]:
        return [trial for trial in self.trials if trial.done]

    @property
    def groups(self) -> dict[str, list[TrialReport]]:
        """Trials that differ in beta alone, by what else tells them apart."""
        found: dict[str, list[TrialReport]] = {}
        for trial in self.trials:
            if trial.trial.beta is not None:
                found.setdefault(trial.label, []).append(trial)
        return found


def gather(sweep: Sweep, states: Iterable[Any] = (), troubles: Sequence[str] = (), now: float | None = None) -> Report:
    """Read a sweep. `states` (of launcher.status.states) say why a trial has no result."""
    known = {state.trial.number: state for state in states}
    names = labels(sweep.trials)
    found = [_trial(sweep, trial, names[trial.number], known.get(trial.number)) for trial in sweep.trials]
    found.sort(key=lambda it: (math.inf if it.trial.beta is None else it.trial.beta, it.trial.number))
    average = any(_at(trial.config, "model.dpo.preference_average_log_probs") for trial in found)
    return Report(
        sweep=sweep,
        made=time.time() if now is None else now,
        trials=tuple(found),
        per="token" if average else "response",
        differences=tuple(_differences(found)),
        troubles=tuple(troubles),
    )


def _trial(sweep: Sweep, trial: Trial, label: str, state: Any) -> TrialReport:
    result = trial.result() or {}
    lines = metrics.read_all(trial.folder / "metrics.jsonl")
    config = _config(trial)
    per_pair = figures.columns(result.get("evaluation"))
    steps = [line for line in lines if isinstance(line.get("step"), int)]
    validations = [line for line in lines if "val/loss" in line and isinstance(line.get("step"), int)]
    final = result.get("final") if isinstance(result.get("final"), dict) else None
    if final is None:  # not done: the last validation after a step
        final = next((line for line in reversed(validations) if line["step"] > 0), {})
    pairs = _validated(config, _integer((result.get("pairs") or {}).get("validation")))
    own = _figures(trial.beta, final, pairs, per_pair, config)
    return TrialReport(
        trial=trial,
        label=label,
        done=bool(result),
        state="DONE" if result else getattr(state, "state", ""),
        why=_why(result, state, lines),
        step=_integer(result.get("steps")) or max((line["step"] for line in steps), default=None),
        max_steps=next((_integer(line["max_steps"]) for line in reversed(steps) if "max_steps" in line), None),
        pairs=pairs,
        history=_history(trial.beta, validations),
        per_pair=per_pair,
        samples=tuple((result.get("evaluation") or {}).get("samples") or ()),
        skipped=str((result.get("evaluation") or {}).get("skipped") or ""),
        cost=_cost(sweep, trial, result, lines, config, state),
        config=config,
        result=result,
        **own,
    )


def _why(result: Mapping[str, Any], state: Any, lines: Sequence[Mapping[str, Any]]) -> str:
    if result:
        return ""
    told = [getattr(state, "state", "").lower(), getattr(state, "reason", ""), getattr(state, "error", "")]
    if any(told):
        return ": ".join(filter(None, told))
    return "no result yet" if lines else "not started"


def _figures(
    beta: float | None, final: Mapping[str, Any], pairs: int | None, per_pair: Any, config: Mapping[str, Any]
) -> dict[str, Figure | None]:
    """The measures, and both log-ratios: means as NeMo-Aligner logged them, the KL as the evaluation found it."""
    values = _measures(beta, final)
    errors: dict[str, float | None] = dict.fromkeys(values)
    at_most = False
    std = _number(final.get("val/rewards_all_std"))
    if per_pair is not None and pairs and beta is not None and _plain_dpo(config):
        for measure in ("loss", "margin", "drift"):
            errors[measure] = _error(figures.each_pair(measure, per_pair, beta), pairs)
        errors["chosen"] = _error(per_pair["log_ratio_chosen"], pairs)
        errors["rejected"] = _error(per_pair["log_ratio_rejected"], pairs)
    elif std is not None and pairs:
        # The two kinds have, each and together, at most so much variance: var(c) + var(r) <= 2 std^2.
        one = std / math.sqrt(pairs)
        at_most = True
        errors["drift"] = one
        errors["chosen"] = errors["rejected"] = math.sqrt(2) * one
        errors["margin"] = 2 * beta * one if beta is not None else None
    if values["accuracy"] is not None and pairs and 0 <= values["accuracy"] <= 1:
        errors["accuracy"] = standard_error(values["accuracy"], pairs)
    found: dict[str, Figure | None] = {"kl": figures.kl(per_pair) if per_pair is not None else None}
    for name, value in values.items():
        bound = at_most and name != "accuracy"
        found[name] = Figure(value, errors[name], bound, pairs) if value is not None else None
    return found


def _measures(beta: float | None, line: Mapping[str, Any]) -> dict[str, float | None]:
    chosen, rejected = _number(line.get("val/rewards_chosen_mean")), _number(line.get("val/rewards_rejected_mean"))
    both = chosen is not None and rejected is not None
    return {
        "loss": _number(line.get("val/loss")),
        "accuracy": _number(line.get("val/acc")),
        "margin": beta * (chosen - rejected) if both and beta is not None else None,  # type: ignore[operator]
        "chosen": chosen,
        "rejected": rejected,
        "drift": (abs(chosen) + abs(rejected)) / 2 if both else None,  # type: ignore[arg-type]
    }


def _error(values: Sequence[float], pairs: int) -> float | None:
    """Of a mean over `pairs`, with the spread of those that were evaluated one by one."""
    found = figures.mean(values)
    return found.error * math.sqrt(len(values) / pairs) if found.error is not None else None


def _plain_dpo(config: Mapping[str, Any]) -> bool:
    """Whether a pair's values follow from its log-ratios as figures.each_pair has it."""
    dpo = _at(config, "model.dpo") or {}
    plain = dpo.get("preference_loss", "dpo") == "dpo" and dpo.get("preference_loss_weight", 1) == 1
    return bool(plain and not dpo.get("sft_loss_weight") and not dpo.get("preference_average_log_probs"))


def _validated(config: Mapping[str, Any], pairs: int | None) -> int | None:
    """Held-out pairs that a validation takes: whole global batches, trainer.dpo.limit_val_batches of them."""
    batch, limit = _at(config, "model.global_batch_size"), _at(config, "trainer.dpo.limit_val_batches")
    if pairs is None or not isinstance(batch, int) or batch < 1:
        return pairs
    whole = pairs // batch
    if isinstance(limit, float):
        whole = int(whole * limit)
    elif isinstance(limit, int):
        whole = min(whole, limit)
    return whole * batch


def _history(beta: float | None, validations: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """A point a step; of a step that was made twice, the last. Before the first step accuracy has no meaning: all
    log-ratios are 0 then."""
    points = {}
    for line in validations:
        values = _measures(beta, line)
        accuracy = values["accuracy"] if line["step"] > 0 else None
        points[line["step"]] = Point(line["step"], values["loss"], accuracy, values["margin"], values["drift"])
    return tuple(points[step] for step in sorted(points))


def _cost(
    sweep: Sweep,
    trial: Trial,
    result: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    state: Any,
) -> Cost:
    starts: list[list[float]] = []
    before = ""
    for line in lines:
        phase = str(line.get("phase", "training"))
        if not starts or (phase == metrics.STARTING and before != metrics.STARTING):
            starts.append([line["time"], line["time"]])
        starts[-1][1] = line["time"]
        before = phase
    seconds = _number(result.get("seconds"))
    if seconds is None and starts:
        seconds = sum(last - first for first, last in starts)
    devices, nodes = _at(config, "trainer.devices"), _at(config, "trainer.num_nodes")
    ranks = _integer(result.get("ranks"))
    if ranks is None and isinstance(devices, int) and isinstance(nodes, int):
        ranks = devices * nodes
    return Cost(
        seconds=seconds,
        ranks=ranks,
        device=str(result.get("device") or "").partition(",")[0],
        waited=max(0.0, starts[0][0] - begun) if starts and (begun := _submitted(sweep, trial)) else None,
        restarts=max(getattr(state, "restarts", 0) or 0, len(starts) - 1, 0),
    )


def _submitted(sweep: Sweep, trial: Trial) -> float | None:
    from datetime import datetime

    for job in sweep.jobs:
        if trial.number in job.get("trials", ()):
            try:
                return datetime.fromisoformat(job["submitted"]).timestamp()
            except (KeyError, TypeError, ValueError):
                return None
    return None


def _config(trial: Trial) -> dict[str, Any]:
    try:
        loaded = trial.config()
    except FileNotFoundError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _differences(trials: Sequence[TrialReport]) -> Iterable[tuple[str, tuple[str, ...]]]:
    flat = [dict(_leaves(trial.config)) for trial in trials]
    for key in sorted(set().union(*flat)) if flat else ():
        values = tuple(_shown(one.get(key)) if one else "?" for one in flat)
        if len(set(values) - {"?"}) > 1 and not key.startswith(_LEFT_OUT):
            yield key, values


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _at(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
