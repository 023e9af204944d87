"""What a run will take, from the corners of a rehearsal: arithmetic that is exact where its model of a step is."""

from collections.abc import Callable

import pytest

from nanochat.forecast import (
    BESIDE_TENSORS,
    USABLE_SHARE,
    Corner,
    duration,
    extend,
    forecast,
    row_candidates,
    rows_that_fit,
)
from nanochat.gpt_config import config_for_depth
from nanochat.plan import TrainPlan, plan_training

STATE = 1000
FACTOR = BESIDE_TENSORS["cuda"][1]


def surface(layers: int, rows: int) -> int:
    return 50 + 20 * layers + 7 * rows + 3 * layers * rows


def corner(layers: int, rows: int) -> Corner:
    size = surface(layers, rows)
    return Corner(layers, rows, size / 1e3, layers / 10, size * 1000, size * 1100, 4000 + 500 * layers)


CORNERS = [corner(layers, rows) for layers in (1, 3) for rows in (2, 4)]


def plan(rows: int, rows_per_step: int, ranks: int = 1) -> TrainPlan:
    return plan_training(
        config_for_depth(12, 4096, 64), device_batch_size=rows, world_size=ranks,
        total_batch_size=rows_per_step * 64 * ranks, num_iterations=100, target_param_data_ratio=0.0, matrix_lr=0.02,
        embedding_lr=0.2, unembedding_lr=0.004,
    )  # fmt: skip


def test_a_run_takes_micro_steps_and_updates_of_its_own_layers_and_rows() -> None:
    found = forecast(plan(16, 64), 12, STATE, CORNERS, "cuda")
    assert found.step_seconds == pytest.approx(4 * surface(12, 16) / 1e3 + 1.2)
    assert found.seconds == pytest.approx(100 * found.step_seconds)
    assert found.memory_bytes == pytest.approx(surface(12, 16) * 1100 * FACTOR)


def test_the_first_micro_step_is_the_peak_of_a_run_without_accumulation() -> None:
    assert forecast(plan(16, 16), 12, STATE, CORNERS, "cuda").memory_bytes == pytest.approx(
        surface(12, 16) * 1000 * FACTOR
    )


def test_ranks_share_the_optimizers_state() -> None:
    alone, four = (forecast(plan(16, 64, ranks), 12, STATE, CORNERS, "cuda").memory_bytes for ranks in (1, 4))
    assert alone - four == pytest.approx(0.75 * STATE * FACTOR)


def test_a_cpus_heap_holds_more_than_its_tensors() -> None:
    fixed, factor = BESIDE_TENSORS["cpu"]
    found = forecast(plan(16, 64), 12, STATE, CORNERS, "cpu")
    assert found.memory_bytes == pytest.approx(fixed + factor * surface(12, 16) * 1100)


def test_one_layer_or_one_row_is_enough_where_the_run_has_no_more() -> None:
    assert extend([corner(1, 1)], [5.0], 1, 1) == 5.0
    assert extend([corner(1, 1), corner(2, 1)], [5.0, 6.0], 2, 1) == 6.0


def test_of_one_number_of_rows_nothing_follows_for_others() -> None:
    with pytest.raises(AssertionError, match="measured at 1 only, asked for 8"):
        extend([corner(1, 1), corner(3, 1)], [5.0, 6.0], 3, 8)


def test_a_clock_that_ran_backwards_does_not_make_a_deep_model_free() -> None:
    assert extend(CORNERS, [4.0, 4.0, 3.0, 3.0], 50, 4) == 4.0


def test_the_most_rows_that_fit_are_taken_and_divide_the_step() -> None:
    assert row_candidates(12, 100) == [12, 6, 4, 3, 2, 1]
    assert row_candidates(12, 5) == [4, 3, 2, 1]
    needed = surface(12, 4) * 1100 * FACTOR / USABLE_SHARE
    choose: Callable[[float], int | None] = lambda free: rows_that_fit(  # noqa: E731
        CORNERS, row_candidates(12, 100), 12, 12, 1, STATE, free, "cuda"
    )
    assert choose(needed + 1) == 4
    assert choose(needed - 1) == 3
    assert choose(1.0) is None
    assert choose(1e12) == 12


def test_the_forecast_is_told_with_its_share_of_the_peak_and_its_price() -> None:
    found = forecast(plan(16, 64, ranks=2), 12, STATE, CORNERS, "cuda")
    lines = found.lines(8e9, 1e9, 3.0, 2).splitlines()
    assert lines[0] == f"  memory           {found.memory_bytes / 1e9:.2f} GB a rank, 8.0 GB are free"
    share = plan(16, 64, 2).total_flops / 100 / found.step_seconds / 2e9
    assert f"{found.step_seconds:.2f} s a step, {share:.0%} of 0.0 TFLOP/s" in lines[1]
    assert lines[2] == f"  cost             ${6 * found.seconds / 3600:.2f}: 2 x $3.00 an hour"
    assert len(found.lines(8e9, None, None, 2).splitlines()) == 2


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.5, "0.5 seconds"), (600, "10.0 minutes"), (7200, "2.0 hours"), (1e6, "11.6 days")]
)
def test_a_duration_is_told_in_its_largest_fitting_unit(seconds: float, told: str) -> None:
    assert duration(seconds) == told
