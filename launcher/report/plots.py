"""The plots as SVG, which takes the page's colours, and all of them on one sheet as PNG. Needs matplotlib."""

from __future__ import annotations

import io
import re
from types import ModuleType

from launcher.findings import Finding, Refused
from launcher.report import text
from launcher.report.gather import Report
from launcher.report.panels import Panel, colours, looks, panels

__all__ = ["check", "colours", "png", "svgs"]
_INK = "#123456"  # replaced by the page's text colour in an SVG
_MOST_NAMED = 12  # pools in the PNG's key


def check() -> None:
    """Raises Refused if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        why = f"is needed for plots ({error})"
        raise Refused([Finding("matplotlib", "", why, "pip install matplotlib, or write --format md,csv")]) from error


def svgs(report: Report) -> list[tuple[Panel, str]]:
    """Each panel that has something to show, as an <svg> element without an XML header."""
    return [(panel, drawn) for panel in panels(report) if (drawn := _svg(panel, report))]


def png(report: Report, dpi: int = 100) -> bytes:
    """All panels on a white sheet, two in a row."""
    plt = _pyplot("#222222")
    drawn = [panel for panel in panels(report) if _has(plt, panel, report)]
    rows = max(1, -(-len(drawn) // 2))
    figure, axes = plt.subplots(rows, 2, figsize=(11, 0.9 + 3.1 * rows), squeeze=False, layout="constrained")
    figure.suptitle(_literal(text.heading(report)), fontsize=13, fontweight="bold")
    for axis, panel in zip(axes.flat, drawn, strict=False):
        panel.draw(axis, report)
        axis.set_title(panel.title, loc="left", fontsize=10.5)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.set_axis_off()
    look, named = looks(report), report.pools[:_MOST_NAMED]
    handles = [plt.Line2D([], [], color=look[pool][0], marker=look[pool][1], ls="-") for pool in named]
    names = [_literal(pool.name) for pool in named]
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(named) or 1))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white")
    plt.close(figure)
    return stream.getvalue()


def _literal(name: str) -> str:
    """Escape `$`: matplotlib reads text between two of them as a formula."""
    return name.replace("$", r"\$")


def _has(plt: ModuleType, panel: Panel, report: Report) -> bool:
    figure, axes = plt.subplots()
    drawn = panel.draw(axes, report)
    plt.close(figure)
    return drawn


def _svg(panel: Panel, report: Report) -> str:
    plt = _pyplot(_INK)
    figure, axes = plt.subplots(figsize=(4.6, 3.0), layout="constrained")
    drawn = panel.draw(axes, report)
    stream = io.StringIO()
    if drawn:
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return _for_page(stream.getvalue(), panel) if drawn else ""


def _for_page(svg: str, panel: Panel) -> str:
    """Inline SVG: text in the page's colour and font, ids that no other plot has, no width of its own."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{panel.key}-")
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{panel.title}">{rest}'


def _pyplot(ink: str) -> ModuleType:
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
