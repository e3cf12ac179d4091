"""Draws each plot on matplotlib's axes. Which plots there are follows from the registry of measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.estimates import Estimate
from launcher.report import measures, over_optimisation
from launcher.report.gather import Report
from launcher.report.measure import Measure
from launcher.report.pools import Pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = "osD^vP*X"
_SCALE = ("#2f6fd6", "#b8408f", "#d98324")  # visible on white and on black; distinct to the colour-blind
_GREY = "#888"
_MOST_DRAWN = 100  # pools drawn as lines; more are drawn as pixels
_MOST_MARKED = 8  # pools that get marks of their own; if there are more, only the colour differs
_MOST_TICKS = 8


@dataclass(frozen=True)
class Panel:
    """One plot."""

    key: str
    title: str
    note: str
    draw: Callable[[Axes, Report], bool]
    """Returns whether there was anything to draw."""


def panels(report: Report) -> list[Panel]:
    """All panels, in order."""
    entries = list(measures.REGISTRY.values())
    return [
        *(_against_beta_panel(measure, report.per) for measure in entries if measure.against_beta),
        *(_frontier_panel(*axes) for axes in _frontiers(report)),
        *(_over_steps_panel(measure, report.per) for measure in entries if measure.over_steps),
    ]


def colours(report: Report) -> dict[Pool, str]:
    """A colour for each pool, from blue for the smallest beta to orange for the largest."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    scale = LinearSegmentedColormap.from_list("betas", _SCALE)
    last = max(1, len(report.pools) - 1)
    return {pool: to_hex(scale(place / last)) for place, pool in enumerate(report.pools)}


def looks(report: Report) -> dict[Pool, tuple[str, str]]:
    """(colour, mark) of each pool."""
    marks = _MARKS if len(report.pools) <= _MOST_MARKED else "." * len(report.pools)
    return {pool: (colour, mark) for (pool, colour), mark in zip(colours(report).items(), marks, strict=False)}


def _against_beta_panel(measure: Measure, per: str) -> Panel:
    dashed = " Dashed: chance." if measure.chance is not None else ""
    return Panel(
        f"{measure.key}-beta",
        f"{_capital(measure.title)} against beta",
        f"{measure.note_of(per)}{dashed}",
        lambda axes, report: _against_beta(axes, report, measure),
    )


def _over_steps_panel(measure: Measure, per: str) -> Panel:
    return Panel(
        f"{measure.key}-steps",
        f"{_capital(measure.title)} over steps",
        measure.note_of(per),
        lambda axes, report: _over_steps(axes, report, measure),
    )


def _against_beta(axes: Axes, report: Report, measure: Measure) -> bool:
    known = _known(report.pools, measure)
    for group in report.groups.values():
        line = _known(group, measure)
        axes.plot([beta for _, beta, _ in line], [it.value for *_, it in line], color=_GREY, lw=1, zorder=1)
    _points(axes, report, [(pool, beta, None, estimate) for pool, beta, estimate in known])
    _beta_axis(axes, [pool.beta for pool in report.pools if pool.beta])
    _chance_line(axes, measure)
    if measure.share:
        axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    elif all(it.value >= 0 for *_, it in known):
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])  # matplotlib's margin is a share of the points' own range
    axes.set_ylabel(measure.label(report.per))
    return bool(known)


def _known(pools: Sequence[Pool], measure: Measure) -> list[tuple[Pool, float, Estimate]]:
    """(pool, beta, estimate) of the pools that have both."""
    return [
        (pool, pool.beta, pool.estimates[measure.key]) for pool in pools if pool.beta and measure.key in pool.estimates
    ]


def _frontiers(report: Report) -> list[tuple[str, Measure, Measure, str]]:
    """(key, measure upwards, measure across, note) of the plots of what is gained against how far the policy went."""
    known = measures.REGISTRY
    up = "up and to the left is better."
    own = known["kl_own"]
    found = [("frontier", known["accuracy"], report.drift_measure, f"Accuracy gained for drift: {up}")]
    for key in ("win", "following"):
        if any(key in pool.estimates and own.key in pool.estimates for pool in report.pools):
            found.append((f"{key}-frontier", known[key], own, f"{known[key].note_of(report.per)} For KL: {up}"))
    note = "Diversity kept for KL: among the samples of one prompt."
    found.append(("diversity-frontier", known["distinct_input"], own, note))
    found.append(
        ("length-frontier", known["length_ratio"], own, "Above 1: answers longer than the reference policy's.")
    )
    return found


def _frontier_panel(key: str, up: Measure, across: Measure, note: str) -> Panel:
    title = f"{_capital(up.title)} against {across.title}"
    return Panel(key, title, note, lambda axes, report: _frontier(axes, report, up, across))


def _frontier(axes: Axes, report: Report, up: Measure, across: Measure) -> bool:
    known = [pool for pool in report.pools if across.key in pool.estimates and up.key in pool.estimates]
    places = [pool.estimates[across.key] for pool in known]
    heights = [pool.estimates[up.key] for pool in known]
    _points(axes, report, [(pool, x.value, x.error, y) for pool, x, y in zip(known, places, heights, strict=True)])
    _courses(axes, report, up, across)
    _chance_line(axes, up)
    axes.margins(x=0.1)
    if up.share:
        axes.set_ylim(top=min(1.05, axes.get_ylim()[1]))
    if all(it.value >= 0 for it in places):  # a KL estimated from samples may lie below 0
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    axes.set_xlabel(across.label(report.per))
    axes.set_ylabel(up.label(report.per))
    return bool(known)


def _courses(axes: Axes, report: Report, up: Measure, across: Measure) -> None:
    """A line a trial through its evaluated checkpoints; for the win rate also the law of over-optimisation."""
    if not any(trial.kept for trial in report.trials):
        return
    look, everywhere = looks(report), []
    for pool in report.pools:
        for trial in pool.trials:
            both = zip(trial.course_of(across), trial.course_of(up), strict=True)
            points = [(x, y) for x, y in both if x is not None and y is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=look[pool][0], marker=".", ms=4, lw=1, zorder=1)
            everywhere += points
    level = up.chance or 0.0
    law = over_optimisation.fit([(x, y - level) for x, y in everywhere]) if up.key == "win" else None
    if law:
        farthest = max(x for x, _ in everywhere)
        steps = [farthest * number / 100 for number in range(101)]
        label = f"{level:g} + d ({law.alpha:.3f} - {law.beta:.3f} ln d), d = sqrt(KL)"
        axes.plot(steps, [level + law.gained(x) for x in steps], color=_GREY, lw=1, ls=":", label=label, zorder=1)
        axes.legend(fontsize=7, loc="lower right")


def _over_steps(axes: Axes, report: Report, measure: Measure) -> bool:
    from matplotlib.collections import LineCollection

    look = looks(report)
    courses = [(pool, points) for pool in report.pools for trial in pool.trials if (points := trial.history(measure))]
    if len(courses) > _MOST_MARKED:
        inks = [look[pool][0] for pool, _ in courses]
        lines = LineCollection([points for _, points in courses], colors=inks, lw=1, rasterized=len(inks) > _MOST_DRAWN)
        axes.add_collection(lines)
        axes.autoscale_view()
    else:
        for pool, points in courses:
            ink, mark = look[pool]
            axes.plot(*zip(*points, strict=True), color=ink, marker=mark, ms=3.5, lw=1.6)
    longest = max((points[-1][0] for _, points in courses), default=0)
    _chance_line(axes, measure if measure.share else None)
    axes.set_xlim(0, max(1, longest) * 1.03)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel(measure.label(report.per))
    return any(len(points) > 1 for _, points in courses)


def _points(axes: Axes, report: Report, points: Sequence[tuple[Pool, float, float | None, Estimate]]) -> None:
    """Draw (pool, x, its error, y) with bars of one standard error; hollow if the pool has no result."""
    look = looks(report)
    if len(points) > _MOST_MARKED:  # in one call: a thousand calls take minutes
        inks = [look[pool][0] for pool, *_ in points]
        faces = [ink if pool.done else "none" for ink, (pool, *_) in zip(inks, points, strict=True)]
        x, y = [x for _, x, _, _ in points], [estimate.value for *_, estimate in points]
        up, across = [estimate.error or 0.0 for *_, estimate in points], [error or 0.0 for _, _, error, _ in points]
        axes.scatter(x, y, s=16, c=faces, edgecolors=inks, zorder=3, rasterized=len(points) > _MOST_DRAWN)
        bars = {"yerr": up, "xerr": across if any(across) else None, "ecolor": inks}
        drawn: Any = axes.errorbar(x, y, fmt="none", lw=1, **bars)  # type: ignore[arg-type]
        for bar in drawn.lines[2]:
            bar.set_rasterized(len(points) > _MOST_DRAWN)
        return
    for pool, place, error, estimate in points:
        ink, mark = look[pool]
        face = ink if pool.done else "none"
        axes.errorbar(
            [place], [estimate.value], estimate.error, error, color=ink, marker=mark, mfc=face, ms=7, capsize=3, lw=1.4
        )


def _chance_line(axes: Axes, measure: Measure | None) -> None:
    if measure is not None and measure.chance is not None:
        axes.axhline(measure.chance, color=_GREY, ls="--", lw=1)


def _beta_axis(axes: Axes, betas: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    different = sorted(set(betas))
    if len(different) > 1 and different[-1] / different[0] > 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if 0 < len(different) <= _MOST_TICKS:
        axes.set_xticks(different, [f"{beta:g}" for beta in different])
    axes.margins(x=0.12)
    axes.set_xlabel("beta")


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]
