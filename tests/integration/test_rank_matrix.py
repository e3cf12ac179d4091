"""However many ranks train, they train the policy that one rank trains: models, precisions, weights, layouts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.rank_runs import STEPS, Cell, Run, run

pytest.importorskip("nemo_aligner")
pytestmark = pytest.mark.nemo

#: How far a step's loss may be from one rank's on the same pairs. Main gradients are added up in fp32: the largest
#: difference measured over 10 steps is in docs/gpu.md. Gradients that are not added up differ by more than 1e-3 from
#: the second step on.
ADDED_UP = 1e-6
#: Where matrices are divided among ranks, or pairs share rows, bf16 rounds other sums. So the measure is bf16's own
#: noise: how far one rank in bf16 is from one rank in fp32. Many ranks may be as many times as far from the one.
#: That they compute the same but for rounding is shown in fp32, with `tiny`.
AS_NOISY = 2.0

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
    Cell("smollm2_135m", "32", "LoRA", 3, 3),
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

    def alone(precision: str) -> Run:
        one = replace(cell, precision=precision, ranks=1, tensor=1)
        if one not in made:
            made[one] = run(train, nemo, tmp_path / "alone", one)
        return made[one]

    difference = many.farthest(alone(cell.precision))
    bound = ADDED_UP
    if cell.precision != "32" and (cell.tensor > 1 or cell.rows):
        bound = AS_NOISY * alone(cell.precision).farthest(alone("32"))
    print(f"| {cell} | {difference:.1e} | {bound:.1e} |")
    assert difference < bound
    assert alone(cell.precision).losses["train/loss"][STEPS] < 0.6, "too little was learnt for a comparison"
