"""The rates as functions of the step: their shape, whatever the numbers."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.schedule import Config, decay_multiplier, lr_multiplier, main, muon_momentum, values

runs = st.integers(1, 300).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(0, steps), st.floats(0, 1), st.floats(0, 1))
)


@given(runs, st.sampled_from(("trapezoid", "cosine")))
def test_the_rate_rises_stays_and_falls_never_leaves_zero_to_one_and_never_jumps(
    run: tuple[int, int, float, float], shape: str
) -> None:
    steps, warmup, warmdown, final = run
    rates = [lr_multiplier(step, steps, warmup, warmdown, final, shape) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    falling = round(warmdown * steps) if shape == "trapezoid" else (steps - warmup) / (math.pi / 2)
    steepest = max(1 / max(warmup, 1), 1 / max(falling, 1))
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


def test_the_cosine_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.1)
    for step in range(90):
        assert lr_multiplier(step + 10, 100, 10, 0.4, 0.1, "cosine") == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_momentum_moves_to_its_last_value_with_the_warm_down() -> None:
    found = [muon_momentum(step, 100, 1000, 0.4, 0.85) for step in (0, 100, 600, 800, 999)]
    assert found == pytest.approx([0.85, 0.95, 0.95, 0.9, 0.85], abs=1e-3)


def test_decay_stays_or_falls_towards_zero() -> None:
    assert {decay_multiplier(step, 10) for step in range(10)} == {1.0}
    assert [decay_multiplier(step, 10, "linear") for step in (0, 5, 9)] == pytest.approx([1, 0.5, 0.1])
    assert [decay_multiplier(step, 12, "cosine") for step in (0, 4, 6, 8)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_the_command_prints_the_values_at_eleven_steps(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(num_iterations=101, warmup_iters=20, decay="linear")
    main(config)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "learning", "rate", "Muon's", "momentum", "weight", "decay"]
    assert [int(row.split()[0]) for row in rows] == list(range(0, 101, 10))
    for row in rows:
        step, *shown = row.split()
        assert [float(value) for value in shown] == pytest.approx(list(values(config, int(step)).values()), abs=1e-4)


def test_the_command_draws_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pictures" / "schedule.png"
    main(Config(shape="cosine", plot=True, out=path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"drew {path}\n"
    other = tmp_path / "other.png"
    main(Config(plot=True, out=other))
    assert other.read_bytes() != path.read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_iterations": 0}, "a schedule has 1 step or more and a warm-up of 0 or more, got 0 and 0"),
        ({"warmdown_ratio": 1.5}, "--warmdown_ratio is a share in 0..1, got 1.5"),
        ({"final_fraction": -1.0}, "--final_fraction is a share in 0..1, got -1"),
    ],
)
def test_impossible_schedules_are_refused_in_one_sentence(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as refused:
        main(replace(Config(), **wrong))  # type: ignore[arg-type]
    assert str(refused.value) == message
