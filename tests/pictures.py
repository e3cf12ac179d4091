"""Pictures for the README: python tests/pictures.py report SWEEP makes docs/report.png of a real sweep's report."""

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

    from launcher import find
    from launcher.report import gather, page

    with tempfile.TemporaryDirectory() as folder, browser.browser() as opened:
        path = Path(folder) / "report.html"
        path.write_text(page.render(gather.gather(find.sweep(sweep))))
        opened.open(path.as_uri(), WIDTH)
        picture = Image.open(io.BytesIO(opened.picture(HEIGHT)))
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(_COLOURS).save(out, optimize=True)
    print(f"{out}, {out.stat().st_size / 1000:.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("picture", choices=["report"])
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default="last")
    parser.add_argument("--out", type=Path, help="default: docs/<picture>.png")
    args = parser.parse_args()
    try:
        report(args.sweep, args.out or REPOSITORY / "docs" / f"{args.picture}.png")
    except (Refused, browser.Missing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
