"""prepare_data.py writes what datasets.map writes, row for row; their times are compared by `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.login_node import ROOT
from tests.benchmarks.prepare import MOST_MB, SAMPLE, measure, table


def test_both_sides_write_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    nemo = ROOT / "models" / "tiny.nemo"
    if not nemo.exists():
        pytest.skip("make models/tiny.nemo")
    theirs, few, many = measure(SAMPLE, nemo, [700, 1400], False, tmp_path)
    assert (theirs.rows, few.rows, many.rows) == (1400, 700, 1400)
    assert max(few.peak_mb, many.peak_mb) < MOST_MB
    assert "prepare_data.py" in table([theirs, few, many])
