"""One trial in the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from launcher import redact
from launcher.dotted_keys import at
from launcher.estimates import Estimate
from launcher.report import measures, recorded
from launcher.report.costs import Course, TrialCost
from launcher.report.measure import Measure
from launcher.report.recorded import Pairs, Result, Sample, Validation
from launcher.report.recorded_scores import RecordedScores
from launcher.report.trial_files import Config
from launcher.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialReport:
    """One trial."""

    trial: Trial
    result: Result | None
    """None: the trial is not done."""
    config: Config
    course: Course
    cost: TrialCost
    scores: RecordedScores | None = None
    """What `evaluate` measured of its answers; None if it did not."""
    kept: tuple[tuple[int, RecordedScores], ...] = ()
    """The same of checkpoints before the last step, with their steps."""
    setting: tuple[str, ...] = ()
    """The overrides in which it differs from other trials, besides beta and seed."""
    state: str = ""
    """A StateName such as "DONE"; "" if it is not known."""
    why: str = ""
    """Why there is no result; "" if there is one."""

    @property
    def done(self) -> bool:
        return self.result is not None

    @property
    def beta(self) -> float | None:
        return self.trial.beta

    @property
    def seed(self) -> int | None:
        return recorded.integer(at(self.config, "model.seed"))

    @property
    def label(self) -> str:
        """Its overrides besides beta and seed, with secrets hidden."""
        return " ".join(redact.override(word) for word in self.setting)

    @property
    def name(self) -> str:
        """`beta 0.05`, with its other overrides besides the seed."""
        own = f"beta {self.beta:g}" if self.beta is not None else f"trial {self.trial.number}"
        return " ".join(filter(None, (own, self.label)))

    @property
    def step(self) -> int | None:
        return self.course.step if self.result is None or self.result.steps is None else self.result.steps

    @property
    def max_steps(self) -> int | None:
        return self.course.max_steps

    @property
    def validation(self) -> Validation | None:
        """The last validation after a step; for a done trial, the one in its result."""
        if self.result is not None and self.result.final is not None:
            return self.result.final
        return next((it for step, it in sorted(self.course.validations.items(), reverse=True) if step > 0), None)

    @property
    def validated(self) -> int | None:
        """The number of held-out pairs in its last validation; None if that was not recorded."""
        return self.validation.pairs if self.validation else None

    @property
    def pairs(self) -> Pairs | None:
        """The evaluation's columns: one value for each held-out pair."""
        return self.result.evaluation.pairs if self.result and self.result.evaluation else None

    @property
    def samples(self) -> tuple[Sample, ...]:
        return self.result.evaluation.samples if self.result and self.result.evaluation else ()

    @property
    def skipped(self) -> str:
        """Why its evaluation was skipped; "" if it was not."""
        return self.result.evaluation.skipped if self.result and self.result.evaluation else ""

    @property
    def plain(self) -> bool:
        """Whether NeMo-Aligner's logged figures follow from each pair's log-ratios as `measures` computes them."""
        dpo = recorded.mapping(at(self.config, "model.dpo"))
        plain = dpo.get("preference_loss", "dpo") == "dpo" and dpo.get("preference_loss_weight", 1) == 1
        return bool(plain and not dpo.get("sft_loss_weight") and not dpo.get("preference_average_log_probs"))

    def columns_for(self, measure: Measure) -> Pairs | None:
        """The columns of the measure's table, if they describe this measure."""
        if measure.table != "evaluation":
            return self.scores.columns_for(measure) if self.scores else None
        return self.pairs if measure.logged is None or (self.plain and self.beta is not None) else None

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Every measure that is known, by its key."""
        validation = self.validation
        std = validation.get("rewards_all_std") if validation else None
        estimates = {
            key: measure.estimate(validation, self.columns_for(measure), self.beta, std)
            for key, measure in measures.REGISTRY.items()
        }
        return {key: estimate for key, estimate in estimates.items() if estimate is not None}

    def course_of(self, measure: Measure) -> list[float | None]:
        """A measure of the answers at each kept checkpoint that was evaluated, and at the end; None if not known."""
        scored = [scores for _, scores in self.kept] + ([self.scores] if self.scores else [])
        known = [measure.estimate(None, it.columns_for(measure), self.beta, None) for it in scored]
        return [None if it is None else it.value for it in known]

    def history(self, measure: Measure) -> list[tuple[int, float]]:
        """(step, value) at each validation. Shares begin after the first step: before it all log-ratios are 0."""
        if measure.logged is None:
            return []
        values = {
            step: measure.logged(validation, self.beta)
            for step, validation in sorted(self.course.validations.items())
            if step > 0 or not measure.share
        }
        return [(step, value) for step, value in values.items() if value is not None]
