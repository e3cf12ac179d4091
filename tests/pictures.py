"""Pictures for the README, of a real sweep as it is at this moment:

python tests/pictures.py report SWEEP    docs/report.png, the upper part of its report
python tests/pictures.py watch SWEEP     docs/watch.png, what `python -m launcher watch` shows
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from launcher.findings import Refused  # noqa: E402
from tests import browser  # noqa: E402

WIDTH, HEIGHT = 1280, 1500
_COLOURS = 128  # of the palette; a page of flat colours loses nothing, and takes a third of the space


def report(sweep: str, out: Path) -> None:
    """The upper part of the HTML report, as a browser shows it."""
    from PIL import Image

    from launcher.report import gather, page
    from launcher.sweep import find

    with tempfile.TemporaryDirectory() as folder, browser.browser() as opened:
        path = Path(folder) / "report.html"
        path.write_text(page.render(gather.gather(find.sweep(sweep))))
        opened.open(path.as_uri(), WIDTH)
        picture = Image.open(io.BytesIO(opened.picture(HEIGHT)))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(_COLOURS).save(out, optimize=True)
    print(f"{out}, {out.stat().st_size / 1000:.0f} kB")


def watch(sweep: str, out: Path) -> None:
    """The live view, 80 columns wide, in a terminal's colours."""
    from PIL import Image
    from rich.console import Console
    from rich.terminal_theme import MONOKAI

    from launcher.status import states
    from launcher.status.losses import Losses
    from launcher.status.screen import draw
    from launcher.sweep import find

    console = Console(record=True, width=80, height=24, force_terminal=True, file=io.StringIO())
    console.print(draw(states.look(find.sweep(sweep)), Losses(), console))
    terminal = "<pre style='font: 15px/1.35 DejaVu Sans Mono, monospace; margin: 14px'>{code}</pre>"
    shown = f"<body style='background: {{background}}; color: {{foreground}}; margin: 0'>{terminal}</body>"
    with tempfile.TemporaryDirectory() as folder, browser.browser() as opened:
        path = Path(folder) / "watch.html"
        html = console.export_html(theme=MONOKAI, inline_styles=True, code_format=f"<meta charset='utf-8'>{shown}")
        path.write_text(html, encoding="utf-8")
        opened.open(path.as_uri(), 760)
        height = opened.run("document.querySelector('pre').getBoundingClientRect().bottom + 14")
        picture = Image.open(io.BytesIO(opened.picture(int(height))))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(_COLOURS).save(out, optimize=True)
    print(f"{out}, {out.stat().st_size / 1000:.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=["report", "watch"])
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default="last")
    parser.add_argument("--out", type=Path, help="default: docs/<picture>.png")
    args = parser.parse_args()
    try:
        make = {"report": report, "watch": watch}[args.picture]
        make(args.sweep, args.out or REPOSITORY / "docs" / f"{args.picture}.png")
    except (Refused, browser.Missing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
