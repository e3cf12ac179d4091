"""The report in a real browser: it asks nobody for anything, complains of nothing, and fits at 400 and 1,600 pixels."""

from __future__ import annotations

import pytest

from launcher.report import gather, page
from tests import browser
from tests.unit import report_sweep

pytest.importorskip("matplotlib")

_PLOTS = """[...document.querySelectorAll("figure svg")].map(
  svg => [svg.getBoundingClientRect().width, svg.querySelectorAll("path").length])"""
_WIDE = """[...document.querySelectorAll("main *")].filter(
  it => !it.closest(".wide, svg") && it.getBoundingClientRect().right > innerWidth + 0.5
).map(it => it.outerHTML.slice(0, 80))"""
_SMALL = """[...document.querySelectorAll("main *")].filter(
  it => it.innerText && !it.closest("svg") && parseFloat(getComputedStyle(it).fontSize) < 12).map(it => it.tagName)"""


@pytest.fixture(scope="module")
def chromium():
    try:
        browser.chromium()
    except browser.Missing as missing:
        pytest.skip(str(missing))
    with browser.browser() as opened:
        yield opened


@pytest.fixture(params=["done", "partial", "not started"])
def url(request, tmp_path) -> str:
    sweep = report_sweep.make(tmp_path / "sweep")
    if request.param != "not started":
        report_sweep.finish(sweep, *([] if request.param == "done" else [0]))
    path = tmp_path / "report.html"
    path.write_text(page.render(gather.gather(sweep)))
    return path.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_page(chromium, url, width, dark):
    chromium.open(url, width, dark=dark)
    assert chromium.requests() == [url]
    assert chromium.complaints() == []
    assert chromium.run("document.documentElement.scrollWidth") == width
    assert chromium.run(_WIDE) == []
    assert chromium.run(_SMALL) == []
    plots = chromium.run(_PLOTS)
    assert all(paths > 10 and across > 250 for across, paths in plots)
    ink, paper = chromium.run(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, colour[4:-1].split(","))) for colour in (ink, paper)]
    assert abs(brightness[0] - brightness[1]) > 500
    assert (brightness[0] > brightness[1]) == dark


def test_all_plots_are_there(chromium, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(gather.gather(report_sweep.finish(report_sweep.make(tmp_path / "sweep")))))
    chromium.open(path.as_uri(), 1600)
    assert len(chromium.run(_PLOTS)) == 8


def test_the_browser_would_tell(chromium, tmp_path):
    """That the checks above can fail: a page that asks, complains and is too wide."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><img src='http://127.0.0.1:9/x.png'><script>console.error('no')</script>"
        "<p style='width: 900px'>wide</p>"
    )
    chromium.open(path.as_uri(), 400)
    assert "http://127.0.0.1:9/x.png" in chromium.requests()
    assert chromium.complaints()
    assert chromium.run("document.documentElement.scrollWidth") > 400
