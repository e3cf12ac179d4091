"""What a submission of a thousand trials takes, but for its time, which `make bench` compares with stock's."""

from __future__ import annotations

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
