"""The rates as functions of the step: their shape, whatever the numbers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.schedule import lr_multiplier, muon_momentum

runs = st.integers(1, 300).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(0, steps), st.floats(0, 1), st.floats(0, 1))
)


@given(runs)
def test_the_rate_rises_stays_and_falls_never_leaves_zero_to_one_and_never_jumps(
    run: tuple[int, int, float, float],
) -> None:
    steps, warmup, warmdown, final = run
    rates = [lr_multiplier(step, steps, warmup, warmdown, final) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    steepest = max(1 / max(warmup, 1), 1 / max(round(warmdown * steps), 1))
    assert all(abs(a - b) <= steepest + 1e-9 for a, b in pairwise(rates))


def test_the_trapezoid_of_ten_steps() -> None:
    rates = [lr_multiplier(step, 10, warmup_iters=2, warmdown_ratio=0.4) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_the_rate_falls_towards_the_final_fraction() -> None:
    rates = [lr_multiplier(step, 10, warmdown_ratio=1.0, final_fraction=0.5) for step in range(11)]
    assert rates == pytest.approx([1 - 0.05 * step for step in range(11)])


def test_warm_up_and_warm_down_that_overlap_meet_without_a_jump() -> None:
    """80 steps up and 80 down in 100: the rate used to fall from 1.0 to 0.25 at step 80."""
    rates = [lr_multiplier(step, 100, warmup_iters=80, warmdown_ratio=0.8) for step in range(100)]
    assert max(rates) == pytest.approx(0.625, abs=0.02)


def test_without_warm_up_and_warm_down_the_rate_is_one() -> None:
    assert {lr_multiplier(step, 7, 0, 0.0) for step in range(7)} == {1.0}


def test_momentum_rises_to_its_end_value_and_stays() -> None:
    assert [muon_momentum(step) for step in (0, 150, 300, 10_000)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
