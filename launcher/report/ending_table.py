"""The comparison of a sweep's trials, from their results alone: plain text for a terminal, Markdown for a README.

NeMo-Aligner's `rewards_*` are mean log-ratios log pi(y|x) - log pi_ref(y|x) of whole responses, in nats, and are not
multiplied by beta, whatever their name says; here they are shown as what they are. The implicit reward of DPO is beta
times that (Rafailov et al. 2023, section 4), so that the reward margin is beta * (chosen - rejected).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.sweep.folder import Outcome, Sweep, Trial, labels

_HEADS = (
    ("", "trial"),
    ("", "beta"),
    ("validation", "loss"),
    ("", "accuracy"),
    ("reward", "margin"),
    ("log-ratio*", "chosen"),
    ("log-ratio*", "rejected"),
    ("", "seconds"),
)
_NOTE = "log-ratio: mean log-probability ratio of a response to the reference policy, in nats, not multiplied by beta"
_LONGEST_REASON = 90


@dataclass(frozen=True)
class Row:
    """One trial's figures on the held-out pairs after its last step; None where there is none."""

    trial: Trial
    label: str
    """What tells it apart besides beta."""
    reason: str = ""
    """Why there is no result."""
    loss: float | None = None
    accuracy: float | None = None
    chosen: float | None = None
    rejected: float | None = None
    seconds: float | None = None
    pairs: int | None = None
    steps: int | None = None

    @property
    def margin(self) -> float | None:
        """Mean reward margin: beta * (log-ratio of chosen - of rejected)."""
        if self.trial.beta is None or self.chosen is None or self.rejected is None:
            return None
        return self.trial.beta * (self.chosen - self.rejected)

    @property
    def drift(self) -> float | None:
        """How far the policy has left the reference: mean of the sizes of both log-ratios, nats a response."""
        if self.chosen is None or self.rejected is None:
            return None
        return (abs(self.chosen) + abs(self.rejected)) / 2


def rows(sweep: Sweep, outcomes: Iterable[Outcome] | None = None) -> list[Row]:
    """A row for every trial, by beta. `outcomes` know why a trial has no result; without them it is just missing."""
    reasons = {outcome.trial.number: outcome for outcome in outcomes or ()}
    names = labels(sweep.trials)
    found = [_row(trial, names[trial.number], reasons.get(trial.number)) for trial in sweep.trials]
    return sorted(found, key=lambda row: (math.inf if row.trial.beta is None else row.trial.beta, row.trial.number))


def _row(trial: Trial, label: str, outcome: Outcome | None) -> Row:
    result = trial.result()
    if result is None:
        told = (outcome.state, outcome.error) if outcome and outcome.state != "DONE" else ("no result",)
        reason = ": ".join(filter(None, told))
        return Row(trial, label, reason)
    final: Mapping[str, Any] = result.get("final") or {}
    pairs = (result.get("pairs") or {}).get("validation")
    return Row(
        trial,
        label,
        loss=_number(final.get("val/loss")),
        accuracy=_number(final.get("val/acc")),
        chosen=_number(final.get("val/rewards_chosen_mean")),
        rejected=_number(final.get("val/rewards_rejected_mean")),
        seconds=_number(result.get("seconds")),
        pairs=int(pairs) if isinstance(pairs, (int, float)) else None,
        steps=result.get("steps"),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def render(sweep: Sweep, outcomes: Iterable[Outcome] | None = None) -> str:
    """The table in plain text, at most 80 columns wide but for reasons and other overrides, with the lines below it."""
    found = rows(sweep, outcomes)
    return "\n".join([*_plain(found), *(textwrap.fill(text, 80, subsequent_indent="  ") for text in _remarks(found))])


def markdown(sweep: Sweep, outcomes: Iterable[Outcome] | None = None) -> str:
    """The same as a Markdown table, its remarks as paragraphs."""
    found = rows(sweep, outcomes)
    cells, extra = _cells(found)
    heads = [" ".join(filter(None, head)).replace("*", "") for head in _HEADS] + (["besides"] if extra else [])
    lines = [_pipes(heads), _pipes(["---:"] * len(_HEADS) + ["---"] * extra)]
    lines += [_pipes([text.replace("|", "\\|") for text in line]) for line in cells]
    return "\n".join(lines) + "\n\n" + "\n\n".join(text.removeprefix("* ") for text in _remarks(found))


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(found: Sequence[Row]) -> tuple[list[list[str]], bool]:
    """The body, and whether it has a last column for overrides and reasons."""
    extra = any(row.label or row.reason for row in found)
    lines = []
    for row in found:
        line = [
            str(row.trial.number),
            "-" if row.trial.beta is None else f"{row.trial.beta:g}",
            _figure(row.loss, ".4f"),
            _figure(row.accuracy, ".3f"),
            _figure(row.margin, "+.4f"),
            _figure(row.chosen, "+.3f"),
            _figure(row.rejected, "+.3f"),
            _figure(row.seconds, ".0f"),
        ]
        reason = row.reason if len(row.reason) <= _LONGEST_REASON else row.reason[: _LONGEST_REASON - 1] + "…"
        lines.append([*line, ", ".join(filter(None, (row.label, reason)))] if extra else line)
    return lines, extra


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plain(found: Sequence[Row]) -> list[str]:
    body, _ = _cells(found)
    heads = [[head[line] for head in _HEADS] for line in (0, 1)]
    figures = len(_HEADS)
    widths = [max(len(line[place]) for line in [*heads, *body]) for place in range(figures)]

    def line(cells: Sequence[str]) -> str:
        columns = [text.rjust(width) for text, width in zip(cells[:figures], widths, strict=True)]
        return "  ".join([*columns, *cells[figures:]]).rstrip()

    return [line(heads[0]), line(heads[1]), *(line(cells) for cells in body)]


def _remarks(found: Sequence[Row]) -> list[str]:
    return [f"* {_NOTE}", _measured_on(found), *verdicts(found)]


def _measured_on(found: Sequence[Row]) -> str:
    done = [row for row in found if not row.reason]
    if not done:
        return "No trial has a result."
    pairs = sorted({row.pairs for row in done if row.pairs is not None})
    steps = sorted({row.steps for row in done if row.steps is not None})
    text = f"Measured on {_span(pairs)} held-out pairs after {_span(steps)} steps, one seed a beta."
    errors = [
        standard_error(row.accuracy, row.pairs)
        for row in done
        if row.accuracy is not None and 0 <= row.accuracy <= 1 and row.pairs
    ]
    if errors:
        text += f" Standard error of an accuracy: up to {max(errors):.3f}."
    if len(pairs) > 1:
        text += " Not every trial was measured on as many pairs: the rows cannot be compared as they stand."
    if len(done) < len(found):
        text += f" {len(found) - len(done)} of {len(found)} trials have no result."
    return text


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` pairs, by Agresti and Coull's rule of two more successes and failures (1998).

    The textbook's formula says 0 where all pairs are right, which on 32 pairs nobody can know.
    """
    share = (share * count + 2) / (count + 4)
    return math.sqrt(share * (1 - share) / (count + 4))


def _span(values: Sequence[int]) -> str:
    if not values:
        return "an unknown number of"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def verdicts(found: Sequence[Row]) -> list[str]:
    """Whether a smaller beta drifts further, said from the figures: a line for each set of other overrides."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        if row.trial.beta is not None:
            groups.setdefault(row.label, []).append(row)
    return [
        (f"{label}: " if label else "") + verdict(group)
        for label, group in groups.items()
        if len({row.trial.beta for row in group}) > 1
    ]


def verdict(found: Sequence[Row]) -> str:
    """Whether the drift falls as beta rises, for trials that differ in beta alone."""
    known = sorted(((row.trial.beta or 0.0, row.drift) for row in found if row.drift is not None), key=lambda it: it[0])
    missing = [f"{row.trial.beta:g}" for row in found if row.drift is None]
    if len({beta for beta, _ in known}) < 2:
        return "Drift: cannot be compared, fewer than two betas have a result."
    figures = ", ".join(f"{drift:.3f} at beta {beta:g}" for beta, drift in known)
    wrong = [
        f"{high:g} drifts {'as far as' if above == below else 'further than'} {low:g}"
        for (low, below), (high, above) in zip(known, known[1:], strict=False)
        if high > low and not above < below
    ]
    text = f"Drift (mean size of the two log-ratios, nats a response): {figures}. "
    if wrong:
        text += f"It does NOT fall as beta rises, as DPO's theory says it should: beta {', beta '.join(wrong)}."
    else:
        text += "It falls as beta rises, as DPO's theory says."
    if missing:
        text += f" Nothing is known of beta {', '.join(missing)}."
    return text
