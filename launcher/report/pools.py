"""The rows of the comparison (trials that differ only in their seed are one row), and differences between rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from launcher import estimates
from launcher.estimates import Estimate
from launcher.report import measures
from launcher.report.measure import Measure
from launcher.report.recorded_scores import PROMPT
from launcher.report.trials import TrialReport


@dataclass(frozen=True, eq=False)
class Pool:
    """One beta with one set of other overrides: one trial, or several that differ only in their seed."""

    trials: tuple[TrialReport, ...]

    @property
    def beta(self) -> float | None:
        return self.trials[0].beta

    @property
    def name(self) -> str:
        return self.trials[0].name

    @property
    def label(self) -> str:
        return self.trials[0].label

    @property
    def numbers(self) -> str:
        """The numbers of its trials: `0, 3, 6`."""
        return ", ".join(str(trial.trial.number) for trial in self.trials)

    @property
    def done(self) -> list[TrialReport]:
        return [trial for trial in self.trials if trial.done]

    @property
    def why(self) -> str:
        """Why results are missing, "" if none is."""
        missing = [trial for trial in self.trials if not trial.done]
        if len(self.trials) == 1:
            return f"{missing[0].why}{progress(missing[0])}" if missing else ""
        return "; ".join(f"trial {it.trial.number}: {it.why}{progress(it)}" for it in missing)

    @property
    def known(self) -> list[TrialReport]:
        """The trials that its estimates are made from: those that are done; if none is, all of them."""
        return self.done or list(self.trials)

    @cached_property
    def estimates(self) -> Mapping[str, Estimate]:
        """Every measure that all of `known` have, by its key, averaged over the seeds."""
        pooled = {}
        for key, measure in measures.REGISTRY.items():
            of_trials = [trial.estimates[key] for trial in self.known if key in trial.estimates]
            if len(of_trials) == 1 and len(self.known) == 1:
                pooled[key] = of_trials[0]
            elif of_trials and len(of_trials) == len(self.known):
                pooled[key] = estimates.over_seeds([it.value for it in of_trials], self._over_pairs(measure, of_trials))
        return pooled

    def _over_pairs(self, measure: Measure, of_trials: Sequence[Estimate]) -> Estimate:
        """The mean over the seeds with its error over the pairs, which are the same for every seed."""
        averaged = average(measure, self.known)
        first = of_trials[0]
        pairs = min((it.pairs for it in of_trials if it.pairs), default=None)
        if measure.logged is None and averaged is not None:
            if not (measure.share and averaged.pairs):
                return averaged
            least = estimates.share_error(averaged.value, averaged.pairs)
            return replace(averaged, error=max(least, averaged.error or 0.0))
        errors = [it.error for it in of_trials if it.error is not None]
        error = math.sqrt(math.fsum(it**2 for it in errors) / len(errors)) if len(errors) == len(of_trials) else None
        if averaged and averaged.error is not None and averaged.pairs and pairs and not measure.share:
            error = averaged.error * math.sqrt(averaged.pairs / pairs)
        at_most = any(it.at_most for it in of_trials)
        return Estimate(
            first.value, error, at_most, pairs, measure.counted, freedom=min(it.freedom for it in of_trials)
        )


def pooled(trials: Iterable[TrialReport]) -> list[Pool]:
    """Pool the trials, in their order. Trials with equal seeds repeat each other and stay separate."""
    together: dict[tuple[float | None, tuple[str, ...]], list[TrialReport]] = {}
    for trial in trials:
        together.setdefault((trial.beta, trial.setting), []).append(trial)
    pools = []
    for alike in together.values():
        seeds = {trial.seed for trial in alike}
        if None not in seeds and len(seeds) == len(alike):
            pools.append(Pool(tuple(alike)))
        else:
            pools += [Pool((trial,)) for trial in alike]
    return pools


def average(measure: Measure, trials: Sequence[TrialReport]) -> Estimate | None:
    """The mean over trials with its error over pairs: each pair's value is averaged first.

    None if a trial has no evaluation, or was evaluated on other pairs.
    """
    terms = [measure.terms(trial.columns_for(measure), trial.beta) for trial in trials]
    if not terms or any(it is None for it in terms) or not _same_pairs(measure, trials):
        return None
    known = [it for it in terms if it is not None]
    sums = [math.fsum(values) / len(known) for values in zip(*(values for values, _ in known), strict=True)]
    return estimates.ratio(sums, known[0][1], measure.counted)


def difference(measure: Measure, pool: Pool, other: Pool) -> Estimate:
    """`pool` minus `other`; both must have the measure.

    It is computed pair by pair if both were evaluated on the same pairs, so that what makes a pair easy or hard for
    both drops out of the error; and seed by seed if both have the same seeds.
    """
    first, second = pool.estimates[measure.key], other.estimates[measure.key]
    paired = _paired(measure, pool, other)
    if paired is not None:
        return paired
    known = first.error is not None and second.error is not None
    seeds, unseen = _unseen_spread(first, second)
    return Estimate(
        first.value - second.value,
        math.hypot(first.error or 0.0, second.error or 0.0, unseen) if known else None,
        first.at_most or second.at_most,
        min((it.pairs for it in (first, second) if it.pairs), default=None),
        measure.counted,
        seeds=seeds,
        seed_error=math.hypot(first.seed_error, second.seed_error, unseen),
        freedom=min(first.freedom, second.freedom),
    )


def _unseen_spread(first: Estimate, second: Estimate) -> tuple[int, float]:
    """(seeds that the spread between seeds is known from, the seed error of the one of the two that has one seed).

    One seed shows no spread: it is taken to spread as the seeds of the other do.
    """
    fewer, more = sorted((first, second), key=lambda it: it.seeds)
    if more.seeds == 1 or fewer.seeds > 1:
        return fewer.seeds, 0.0
    return more.seeds, more.seed_error * math.sqrt(more.seeds)


def _paired(measure: Measure, pool: Pool, other: Pool) -> Estimate | None:
    """The difference pair by pair; None if the two were evaluated on different pairs or have different seeds."""
    if not _same_pairs(measure, [*pool.known, *other.known]):
        return None
    differences = []
    for first, second in _matched(pool, other):
        own, others = (measure.terms(trial.columns_for(measure), trial.beta) for trial in (first, second))
        if own is None or others is None:
            return None
        differences.append([a - b for a, b in zip(own[0], others[0], strict=True)])
        sizes = own[1]
    if not differences:
        return None
    sums = [math.fsum(values) / len(differences) for values in zip(*differences, strict=True)]
    estimate = replace(estimates.ratio(sums, sizes, measure.counted), paired=True)
    if measure.share:
        gained, lost = (math.fsum(max(sign * value, 0.0) for value in sums) for sign in (1, -1))
        estimate = replace(estimate, error=estimates.matched_error(gained, lost, len(sums)))
    return estimates.over_seeds([estimates.ratio(values, sizes).value for values in differences], estimate)


def _matched(pool: Pool, other: Pool) -> list[tuple[TrialReport, TrialReport]]:
    """Trials of the same seed; if each pool has one trial, these two. [] if the seeds differ."""
    if len(pool.known) == len(other.known) == 1:
        return [(pool.known[0], other.known[0])]
    by_seed = {trial.seed: trial for trial in other.known}
    if {trial.seed for trial in pool.known} != set(by_seed):
        return []
    return [(trial, by_seed[trial.seed]) for trial in pool.known]


def _same_pairs(measure: Measure, trials: Sequence[TrialReport]) -> bool:
    """Whether all were evaluated on the same prompts, or on the same pairs, judged by their token counts and number."""
    tables = [trial.columns_for(measure) for trial in trials]
    first = tables[0]
    if first is None:
        return False
    telling = [name for name in first if name.startswith("tokens_") or name == PROMPT]
    size = len(next(iter(first.values())))
    for table in tables[1:]:
        if table is None or len(next(iter(table.values()))) != size:
            return False
        if any(table.get(name) != first[name] for name in telling):
            return False
    return True


def progress(trial: TrialReport) -> str:
    if not trial.step:
        return ""
    return f", step {trial.step}/{trial.max_steps}" if trial.max_steps else f", step {trial.step}"
