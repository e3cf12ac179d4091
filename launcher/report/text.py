"""The sentences and tables that all forms of the report share: HTML, Markdown and the table after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from launcher import estimates, units
from launcher.dotted_keys import at
from launcher.estimates import LEVEL
from launcher.report import costs, measures, recorded
from launcher.report.gather import Report
from launcher.report.judge import Judgement
from launcher.report.measure import Measure
from launcher.report.pools import Pool, progress

_MOST_COLUMNS = 12
_MOST_NAMED = 6


def heading(report: Report) -> str:
    name = report.sweep.experiment.get("name") or report.sweep.folder.name
    trials = len(report.trials)
    return f"{name}: comparison of {trials} trials" if trials > 1 else f"{name}: one trial"


def when(report: Report) -> str:
    made = datetime.fromtimestamp(report.made).astimezone()
    return f"{len(report.done)} of {len(report.trials)} trials done, as of {made:%Y-%m-%d %H:%M}."


def summary(report: Report) -> str:
    """What was compared, in one line."""
    betas = sorted({trial.beta for trial in report.trials if trial.beta is not None})
    paths = [at(trial.config, "pretrained_checkpoint.restore_from_path") for trial in report.trials]
    models = sorted({Path(str(path)).stem for path in paths if path})
    parts = [f"DPO on {', '.join(models)}" if models else "DPO"]
    if 0 < len(betas) <= _MOST_NAMED:
        parts.append(f"beta {', '.join(f'{beta:g}' for beta in betas)}")
    elif betas:
        parts.append(f"{len(betas)} betas from {betas[0]:g} to {betas[-1]:g}")
    if most_seeds(report) > 1:
        parts.append(f"{span(sorted({len(pool.known) for pool in report.pools}))} seeds per beta")
    if pairs := validated(report):
        parts.append(f"{span(pairs)} held-out pairs")
    return ", ".join(parts)


def warnings(report: Report) -> list[str]:
    """What a reader must know before reading the figures."""
    missing = [trial for trial in report.trials if not trial.done]
    warnings = []
    if missing:
        named = "; ".join(f"{trial.name}: {trial.why}{progress(trial)}" for trial in missing[:_MOST_NAMED])
        more = f"; and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        warnings.append(f"Partial: {len(missing)} of {len(report.trials)} trials have no result ({named}{more}).")
    warnings += unequal(report)
    unevaluated = [trial for trial in report.done if trial.pairs is None]
    if unevaluated:
        reasons = sorted({trial.skipped for trial in report.done if trial.skipped})
        why = f" ({'; '.join(reasons)})" if reasons else "; report --evaluate computes it"
        names = ", ".join(trial.name for trial in unevaluated[:_MOST_NAMED])
        warnings.append(f"There is no exact KL of {names}{' and more' if len(unevaluated) > _MOST_NAMED else ''}{why}.")
    return [*warnings, *report.troubles]


def unequal(report: Report) -> list[str]:
    """Why trials cannot be compared directly."""
    reasons = []
    if len(validated(report)) > 1:
        reasons.append("The trials were measured on different numbers of pairs: the rows cannot be compared directly.")
    if len({trial.step for trial in report.done}) > 1:
        reasons.append("The trials made different numbers of steps.")
    if len({trial.result.precision for trial in report.done if trial.result}) > 1:
        reasons.append("The trials were computed in different precisions.")
    made = [trial.scores.made for trial in report.trials if trial.scores]
    differing = sorted({key for one in made for key in one if any(it.get(key) != one[key] for it in made)})
    if differing:
        keys = ", ".join(differing)
        reasons.append(f"The policies' answers were not all made and judged alike ({keys}): run `evaluate` for all.")
    return reasons


def measured(report: Report) -> str:
    """The number of pairs and steps behind the figures, and what their errors cover."""
    steps = sorted({trial.step for trial in report.trials if trial.step is not None})
    text = f"Measured on {span(validated(report))} held-out pairs{_evaluated(report)} after {span(steps)} steps; "
    text += "± is one standard error "
    text += "over pairs and seeds" if most_seeds(report) > 1 else "over pairs"
    if any(it.at_most for pool in report.pools for it in pool.estimates.values()):
        text += " ('≤': only an upper bound is known)"
    if most_seeds(report) > 1:
        return f"{text}. A row is the mean over its seeds."
    return f"{text}. There is one seed per beta: the errors do not cover the spread between seeds."


def _evaluated(report: Report) -> str:
    """The number of pairs that the evaluation measured, if it differs from that of the validation."""
    counts = sorted({len(next(iter(trial.pairs.values()))) for trial in report.trials if trial.pairs})
    names = ", ".join(measure.title for measure in columns() if measure.logged is None)
    return f" ({names}: on {span(counts)})" if counts and counts != validated(report) else ""


def columns() -> list[Measure]:
    """The measures of the main table."""
    return [measure for measure in measures.REGISTRY.values() if measure.table == "evaluation"]


def answer_columns(report: Report) -> list[Measure]:
    """The measures of what the policies say that any row has; [] if no trial's answers were measured."""
    return [it for it in measures.REGISTRY.values() if it.table != "evaluation" and known(report, it)]


def known(report: Report, measure: Measure) -> bool:
    """Whether any row has the measure."""
    return any(measure.key in pool.estimates for pool in report.pools)


def answers_measured(report: Report) -> list[str]:
    """How many prompts were answered, who judged, and why there is no win rate; [] if nothing was measured."""
    scored = [trial.scores for trial in report.trials if trial.scores]
    if not scored:
        return []
    prompts = sorted({len(it.prompts) for it in scored})
    seeds = " and seeds" if most_seeds(report) > 1 else ""
    lines = [
        f"Answers to {span(prompts)} prompts; ± is one standard error over prompts{seeds}, not over single samples."
    ]
    if not seeds and len(scored) > 1:
        lines.append("Of one seed per beta: what differs may be the seed's doing.")
    judges: dict[str, None] = {}
    for judge in (it for scores in scored for it in scores.judges):
        accuracy, error = (recorded.number(judge.facts.get(f"held_out_accuracy{end}")) for end in ("", "_error"))
        skill = f", which is right on {estimates.shown(accuracy, error, '.3f')} of held-out pairs" if accuracy else ""
        name = " ".join(filter(None, (judge.name, str(judge.facts.get("model") or ""))))
        against = "the chosen answers" if judge.opponent == "chosen" else "the reference policy's answers"
        reason = f": no win rate, {judge.unusable}" if judge.unusable else ""
        judges[f"Judge against {against}: {name}{skill}{_asked(judge.facts)}{reason}."] = None
    return [*lines, *judges]


def _asked(facts: Mapping[str, object]) -> str:
    """What a judge's own facts say against its verdicts: those that it did not give, a position that it prefers."""
    silent, cut = (recorded.number(facts.get(key)) for key in ("no_verdict", "cut"))
    first = recorded.number(facts.get("first_position_preferred"))
    said = (
        [f"no verdict on {silent:.0f} of {(recorded.number(facts.get('questions')) or 0) / 2:.0f} comparisons"]
        if silent
        else []
    )
    said += [f"{first:.0%} of its verdicts for the answer shown first"] if first is not None else []
    said += [f"{cut:.0f} texts cut at their beginning"] if cut else []
    return f", {', '.join(said)}" if said else ""


def note(shown: Sequence[Measure], report: Report) -> str:
    """Explanations of the columns."""
    notes = [measure.note_of(report.per) for measure in shown if measure.note]
    return " ".join(notes) + (" Log-ratios are averaged over the tokens." if report.per == "token" else "")


def rule(judgement: Judgement) -> str:
    """The rule by which a finding counts."""
    count = len(judgement.findings)
    several = f", after Holm's correction for {count} findings" if count > 1 else ""
    return (
        f"A finding counts if its p-value is below {LEVEL:g}{several}. "
        "A verdict is about the measures listed, not about the wording of the claim."
    )


def validated(report: Report) -> list[int]:
    """The distinct numbers of held-out pairs that trials were validated on."""
    return sorted({trial.validated for trial in report.trials if trial.validated is not None})


def most_seeds(report: Report) -> int:
    """The most seeds that the figures of a row are made from."""
    return max((len(pool.known) for pool in report.pools), default=0)


def span(values: Sequence[int]) -> str:
    if not values:
        return "an unknown number of"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def shown(pool: Pool, measure: Measure) -> str:
    """`0.750 ± 0.077`, `-` if it is not known."""
    it = pool.estimates.get(measure.key)
    return "-" if it is None else estimates.shown(it.value, it.error, measure.form, it.at_most)


def besides(pool: Pool) -> str:
    """The overrides of a row besides beta, and why results are missing."""
    return ", ".join(filter(None, (pool.label, pool.why)))


def cost_table(report: Report) -> tuple[list[str], list[list[str]], str]:
    """(heads, one row for each trial, a line with the sums)."""
    known = [trial.cost for trial in report.trials]
    unit = costs.unit(known)
    rows = [
        [
            trial.name if len(report.pools) == len(report.trials) else f"{trial.name}, seed {trial.seed}",
            "-" if trial.cost.ranks is None else str(trial.cost.ranks),
            "-" if trial.cost.hours is None else units.hours(trial.cost.hours),
            _clock(trial.cost.seconds),
            _clock(trial.cost.waited),
            str(trial.cost.restarts),
        ]
        for trial in report.trials
    ]
    total = f"{units.hours(sum(cost.hours or 0.0 for cost in known))} {unit} in all, "
    total += f"{units.clock(sum(cost.seconds or 0.0 for cost in known))} of wall time summed over trials, "
    total += f"{sum(cost.restarts for cost in known)} restarts."
    if unit == "CPU-hours":
        total += " CPU-hours: wall time x ranks."
    return ["trial", "ranks", unit, "wall", "waited", "restarts"], rows, total


def differences(report: Report) -> tuple[list[str], list[list[str]]]:
    """(heads, one row for each key): its value in each trial, or if there are too many trials, its distinct values."""
    if len(report.trials) <= _MOST_COLUMNS:
        heads = [trial.name for trial in report.trials]
        return ["key", *heads], [
            [key, *(values[trial.trial.number] for trial in report.trials)] for key, values in report.differences
        ]
    rows = []
    for key, values in report.differences:
        different = list(dict.fromkeys(values.values()))
        more = f" and {len(different) - _MOST_COLUMNS} more" if len(different) > _MOST_COLUMNS else ""
        rows.append([key, ", ".join(different[:_MOST_COLUMNS]) + more])
    return ["key", "values"], rows


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else units.clock(seconds)
