"""What a submission of a thousand trials takes, but for its time, which `make bench` compares with stock's.

And that the sweep of done trials, whose `status` and `report` are timed there, is one.
"""

from __future__ import annotations

from tests.benchmarks import done_sweep
from tests.benchmarks.login_node import login_node
from tests.benchmarks.submit import MOST_MB, MOST_QUESTIONS, imported


def test_a_thousand_trials() -> None:
    with login_node() as node:
        made = node.ours(1000)
        assert "array 4711: 1000 trials x 2 nodes x 2 ranks" in made.stdout
        assert made.commands.pop("sbatch") == 1
        assert sum(made.commands.values()) <= MOST_QUESTIONS
        assert made.peak_mb < MOST_MB
        assert imported(node) == []


def test_the_sweep_of_done_trials_is_shown_as_done() -> None:
    with login_node() as node:
        sweep = done_sweep.make(node, 3)
        assert done_sweep.show(node, "status", str(sweep)).cpu_seconds > 0  # exit code 0: all are done
        done_sweep.show(node, "report", str(sweep), "--format", "md")
        report = (sweep / "report" / "report.md").read_text()
        assert "0.001" in report and "0.003" in report and "no result" not in report
