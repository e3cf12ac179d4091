"""The plots, as SVG that takes its page's colours, and all of them on one sheet as PNG. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.findings import Finding, Refused
from launcher.report.figures import Figure
from launcher.report.gather import Report, TrialReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#123456"  # stands for the page's text colour in an SVG
_MARKS = "osD^vP*X"
_SCALE = ("#2f6fd6", "#b8408f", "#d98324")  # seen on white and on black; told apart when colour-blind
_MOST_DRAWN = 100  # trials drawn as lines; more are drawn as pixels
_MOST_NAMED = 12  # trials in the PNG's key
_MOST_MARKED = 8  # trials that get a mark of their own; of more, the colour alone tells


@dataclass(frozen=True)
class Plot:
    """One panel."""

    key: str
    title: str
    note: str
    draw: Callable[[Axes, Report], bool]
    """Returns whether there was anything to draw."""


def check() -> None:
    """Raises Refused where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        why = f"is needed for plots ({error})"
        raise Refused([Finding("matplotlib", "", why, "pip install matplotlib, or write --format md,csv")]) from error


def svgs(report: Report) -> list[tuple[Plot, str]]:
    """Each panel that has something to show, as an <svg> element without XML header."""
    return [(plot, text) for plot in plots(report) if (text := _svg(plot, report))]


def png(report: Report, dpi: int = 100) -> bytes:
    """All panels on a white sheet, two in a row."""
    plt = _pyplot("#222222")
    shown = [plot for plot in plots(report) if _has(plot, report)]
    rows = max(1, -(-len(shown) // 2))
    figure, axes = plt.subplots(rows, 2, figsize=(11, 0.9 + 3.1 * rows), squeeze=False, layout="constrained")
    figure.suptitle(title(report), fontsize=13, fontweight="bold")
    for axis, plot in zip(axes.flat, shown, strict=False):
        plot.draw(axis, report)
        axis.set_title(plot.title, loc="left", fontsize=10.5)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_axis_off()
    looks, named = _looks(report), report.trials[:_MOST_NAMED]
    handles = [
        plt.Line2D([], [], color=looks[it.trial.number][0], marker=looks[it.trial.number][1], ls="-") for it in named
    ]
    figure.legend(handles, [it.name for it in named], loc="outside lower center", ncols=min(6, len(named) or 1))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white")
    plt.close(figure)
    return stream.getvalue()


def title(report: Report) -> str:
    return f"{report.sweep.experiment.get('name') or report.sweep.folder.name}: {len(report.trials)} trials"


def colours(report: Report) -> dict[int, str]:
    """A colour for each trial, by number: blue for the smallest beta to orange for the largest."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ordered = [trial.trial.number for trial in report.trials]
    scale = LinearSegmentedColormap.from_list("betas", _SCALE)
    last = max(1, len(ordered) - 1)
    return {number: to_hex(scale(place / last)) for place, number in enumerate(ordered)}


def plots(report: Report) -> list[Plot]:
    """All panels, in order."""
    per = f"nats a {report.per}"
    exact = any(trial.kl for trial in report.trials)
    return [
        Plot("accuracy-beta", "Accuracy against beta", "Held-out pairs whose chosen response has the higher log-ratio; "
             "dashed: chance.", lambda axes, it: _against_beta(axes, it, "accuracy", "accuracy")),
        Plot("drift-beta", "Drift against beta", f"Mean size of the log-ratios to the reference policy, {per}, "
             "not multiplied by beta.", lambda axes, it: _against_beta(axes, it, "drift", f"drift, {per}")),
        Plot("kl-beta", "Exact KL against beta", "KL(policy || reference) over the whole vocabulary, on the held-out "
             "responses.", lambda axes, it: _against_beta(axes, it, "kl", "KL, nats a token")),
        Plot("frontier", "Accuracy against drift", "What is learned for how much drift: up and to the left is better.",
             lambda axes, it: _frontier(axes, it, "kl" if exact else "drift", "KL, nats a token" if exact else per)),
        Plot("loss-steps", "Loss over steps", "Held-out pairs. The loss depends on beta itself: compare its course, "
             "not its height.", lambda axes, it: _over_steps(axes, it, "loss", "loss")),
        Plot("accuracy-steps", "Accuracy over steps", "Held-out pairs.",
             lambda axes, it: _over_steps(axes, it, "accuracy", "accuracy")),
        Plot("margin-steps", "Reward margin over steps", "beta x (log-ratio of chosen - of rejected).",
             lambda axes, it: _over_steps(axes, it, "margin", "reward margin")),
        Plot("drift-steps", "Drift over steps", "Mean size of the log-ratios to the reference policy.",
             lambda axes, it: _over_steps(axes, it, "drift", f"drift, {per}")),
    ]  # fmt: skip


def _has(plot: Plot, report: Report) -> bool:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    drawn = plot.draw(axes, report)
    plt.close(figure)
    return drawn


def _svg(plot: Plot, report: Report) -> str:
    plt = _pyplot(_INK)
    figure, axes = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
    drawn = plot.draw(axes, report)
    stream = io.StringIO()
    if drawn:
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return _for_page(stream.getvalue(), plot) if drawn else ""


def _for_page(text: str, plot: Plot) -> str:
    """Inline SVG: text in the page's colour and font, ids that no other plot has, as wide as its place."""
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{plot.key}-")
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{plot.title}">{rest}'


def _pyplot(ink: str) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.18,
            "legend.frameon": False,
            "legend.fontsize": 9,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
            "grid.color": ink,
        }
    )
    import matplotlib.pyplot as plt

    return plt


def _looks(report: Report) -> dict[int, tuple[str, str]]:
    """(colour, mark) by trial number."""
    marks = _MARKS if len(report.trials) <= _MOST_MARKED else "." * len(report.trials)
    return {number: (colour, mark) for (number, colour), mark in zip(colours(report).items(), marks, strict=False)}


def _against_beta(axes: Axes, report: Report, measure: str, label: str) -> bool:
    known = [trial for trial in report.trials if trial.figure(measure) and trial.trial.beta]
    for group in report.groups.values():
        line = [trial for trial in group if trial.figure(measure) and trial.trial.beta]
        axes.plot([_beta(it) for it in line], [_of(it, measure).value for it in line], color="#888", lw=1, zorder=1)
    _points(axes, report, [(trial, _beta(trial), None, _of(trial, measure)) for trial in known])
    _beta_axis(axes, [trial.trial.beta for trial in report.trials if trial.trial.beta])
    if measure == "accuracy":
        axes.axhline(0.5, color="#888", ls="--", lw=1)
        axes.set_ylim(top=min(1.02, axes.get_ylim()[1]))
    elif known:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if measure == "margin" else 0)
    axes.set_ylabel(label)
    return bool(known)


def _frontier(axes: Axes, report: Report, measure: str, label: str) -> bool:
    known = [trial for trial in report.trials if trial.figure(measure) and trial.accuracy]
    drifts = [_of(trial, measure) for trial in known]
    pairs = zip(known, drifts, strict=True)
    _points(axes, report, [(trial, drift.value, drift.error, _of(trial, "accuracy")) for trial, drift in pairs])
    axes.axhline(0.5, color="#888", ls="--", lw=1)
    axes.margins(x=0.1)
    axes.set_ylim(top=min(1.05, axes.get_ylim()[1]))
    axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    axes.set_xlabel(label if measure == "kl" else f"drift, {label}")
    axes.set_ylabel("accuracy")
    return bool(known)


def _over_steps(axes: Axes, report: Report, measure: str, label: str) -> bool:
    from matplotlib.collections import LineCollection

    looks = _looks(report)
    courses = {
        trial.trial.number: [
            (point.step, value) for point in trial.history if (value := getattr(point, measure)) is not None
        ]
        for trial in report.trials
    }
    courses = {number: points for number, points in courses.items() if points}
    if len(courses) > _MOST_MARKED:
        inks = [looks[number][0] for number in courses]
        axes.add_collection(
            LineCollection(list(courses.values()), colors=inks, lw=1, rasterized=len(inks) > _MOST_DRAWN)
        )
        axes.autoscale_view()
    else:
        for number, points in courses.items():
            ink, mark = looks[number]
            axes.plot(*zip(*points, strict=True), color=ink, marker=mark, ms=3.5, lw=1.6)
    longest = max((points[-1][0] for points in courses.values()), default=0)
    if measure == "accuracy":
        axes.axhline(0.5, color="#888", ls="--", lw=1)
    axes.set_xlim(0, max(1, longest) * 1.03)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    return any(len(points) > 1 for points in courses.values())


def _points(axes: Axes, report: Report, points: Sequence[tuple[TrialReport, float, float | None, Figure]]) -> None:
    """(trial, x, its error, y): with bars of one standard error; hollow where the trial is not done."""
    looks = _looks(report)
    if len(points) > _MOST_MARKED:  # in one go: a call a trial takes minutes for a thousand
        inks = [looks[trial.trial.number][0] for trial, *_ in points]
        faces = [ink if trial.done else "none" for ink, (trial, *_) in zip(inks, points, strict=True)]
        x, y = [x for _, x, _, _ in points], [figure.value for *_, figure in points]
        up, across = [figure.error or 0.0 for *_, figure in points], [error or 0.0 for _, _, error, _ in points]
        axes.scatter(x, y, s=16, c=faces, edgecolors=inks, zorder=3, rasterized=len(points) > _MOST_DRAWN)
        bars = {"yerr": up, "xerr": across if any(across) else None, "ecolor": inks}
        drawn: Any = axes.errorbar(x, y, fmt="none", lw=1, **bars)  # type: ignore[arg-type]
        for bar in drawn.lines[2]:
            bar.set_rasterized(len(points) > _MOST_DRAWN)
        return
    for trial, place, error, figure in points:
        ink, mark = looks[trial.trial.number]
        face = ink if trial.done else "none"
        axes.errorbar(
            [place], [figure.value], figure.error, error, color=ink, marker=mark, mfc=face, ms=7, capsize=3, lw=1.4
        )


def _of(trial: TrialReport, measure: str) -> Figure:
    figure = trial.figure(measure)
    assert figure is not None
    return figure


def _beta(trial: TrialReport) -> float:
    assert trial.trial.beta is not None
    return trial.trial.beta


def _beta_axis(axes: Axes, betas: Sequence[float]) -> None:
    different = sorted(set(betas))
    if len(different) > 1 and different[-1] / different[0] > 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(_no_ticks())
    if 0 < len(different) <= 8:
        axes.set_xticks(different, [f"{beta:g}" for beta in different])
    axes.margins(x=0.12)
    axes.set_xlabel("beta")


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
