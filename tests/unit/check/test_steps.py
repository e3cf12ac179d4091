import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.check.steps import Plan, plan, validation_batches
from launcher.findings import Refused


def test_fractions_of_an_epoch() -> None:
    assert plan(160_800, 64, 1, -1, 0.1, 0.1) == Plan(2512, 2512, 251, 251)


def test_a_fraction_of_a_short_epoch_is_still_a_step() -> None:
    assert plan(64, 8, 1, -1, 0.1, 0.1) == Plan(8, 8, 1, 1)


def test_cap_and_epochs() -> None:
    assert plan(100, 10, 3, 25, 5, 10).max_steps == 25
    assert plan(100, 10, 2, -1, 5, 10).max_steps == 20


def test_too_few_rows() -> None:
    with pytest.raises(Refused, match="only 7 rows"):
        plan(7, 8)


def test_save_between_validations() -> None:
    with pytest.raises(Refused, match="not a multiple"):
        plan(100, 10, 1, -1, 4, 6)


@given(
    st.integers(1, 10**6),
    st.integers(1, 512),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
)
def test_a_save_is_always_after_a_validation(rows: int, batch: int, val: float, save: float) -> None:
    if rows < batch:
        return
    steps = plan(rows, batch, 1, -1, val, save)
    assert steps.val_check_interval >= 1
    assert steps.save_interval % steps.val_check_interval == 0


def test_an_epoch_may_be_cut() -> None:
    assert plan(100, 10, 2, -1, 1, 1, 0.5) == Plan(5, 10, 1, 1)
    assert plan(100, 10, 1, -1, 1, 1, 3).max_steps == 3
    assert plan(100, 10, 1, -1, 1, 1, 1.0) == plan(100, 10, 1, -1, 1, 1, None) == plan(100, 10, 1, -1, 1, 1, 99)
    with pytest.raises(Refused, match="limit_train_batches"):
        plan(100, 10, 1, -1, 1, 1, 0.01)


def test_a_validation_has_at_least_one_batch() -> None:
    """As NeMo-Aligner's compute_limit_batches rounds, where the loader holds that many batches."""
    assert [validation_batches(4000, 64, limit) for limit in (1.0, 0.5, 0.017, 3, 99, 2.0)] == [62, 31, 1, 3, 62, 62]
    with pytest.raises(Refused, match=r"limit_val_batches=0\.01: leaves no batch of the 62 .* 1 for one batch"):
        validation_batches(4000, 64, 0.01)
    with pytest.raises(Refused, match="the validation file has only 7 rows"):
        validation_batches(7, 8, 1)
