"""However many ranks train, they train the policy that one rank trains: models, precisions, weights, layouts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.integration.rank_runs import STEPS, Cell, Run, run

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

ADDED_UP = 1e-6
ROWS = 1e-3
SHARDS = {"32": 1e-5, "bf16": 1e-2, "bf16-mixed": 1e-2}

LAYOUTS = {"tiny": [(2, 1), (4, 1), (4, 2)], "smollm2_135m": [(2, 1), (4, 1), (3, 3)]}
MATRIX = [
    Cell(model, precision, weights, *layout)
    for model, layouts in LAYOUTS.items()
    for precision, weights, layout in itertools.product(("bf16", "bf16-mixed"), ("LoRA", "all"), layouts)
]
BESIDES = [
    Cell("tiny", "bf16", "LoRA", 2, rows=True),
    Cell("smollm2_135m", "bf16", "LoRA", 2, rows=True),
    Cell("tiny", "32", "LoRA", 4),
    Cell("tiny", "32", "LoRA", 4, 2),
    Cell("tiny", "32", "all", 4, 2),
]
QUICK = {BESIDES[0], Cell("tiny", "bf16-mixed", "LoRA", 2)}
"""Those that every run of the tests has time for."""


@pytest.fixture(scope="module")
def made() -> dict[Cell, Run]:
    """One rank's runs, each of which several cells are compared with."""
    return {}


@pytest.fixture(scope="module")
def smollm2_nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_prep import convert_checkpoint

    return convert_checkpoint.convert("smollm2_135m", tmp_path_factory.mktemp("m") / "smollm2.nemo", verify=False)


@pytest.mark.parametrize(
    "cell", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in BESIDES + MATRIX], ids=str
)
def test_many_ranks_train_what_one_trains(cell, train, request, tmp_path, made):
    import torch

    nemo = request.getfixturevalue("tiny_nemo" if cell.model == "tiny" else "smollm2_nemo")
    many = run(train, nemo, tmp_path / "many", cell)
    for rank, weights in enumerate(many.weights):
        same_part = many.weights[rank % cell.tensor]  # ranks 0 and 2 of two copies of two parts hold the same part
        for name, weight in weights.items():
            other = many.weights[0] if name in many.shared else same_part
            assert torch.equal(weight, other[name]), f"rank {rank}: {name}"
    if cell.alone not in made:
        made[cell.alone] = run(train, nemo, tmp_path / "alone", cell.alone)
    alone = made[cell.alone]
    difference = many.farthest(alone)
    print(f"| {cell} | {difference:.1e} |")
    assert difference < (SHARDS[cell.precision] if cell.tensor > 1 else ROWS if cell.rows else ADDED_UP)
    assert alone.losses["train/loss"][STEPS] < 0.6, "too little was learnt for the comparison to mean anything"
