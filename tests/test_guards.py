"""Steps that cannot be used are skipped and counted, odd ones are told, ordinary ones are left alone."""

import json
import random

import pytest

from nanochat.guards import PATIENCE, StepGuard

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (2.0, NAN), (2.0, INF), (-INF, NAN)])
def test_a_step_is_skipped_when_either_number_is_not_finite(loss: float, norm: float) -> None:
    guard = StepGuard()
    judgement = guard.judge(loss, norm)
    assert (judgement.usable, judgement.roll_back) == (False, False)
    assert judgement.facts["skipped_steps"] == 1
    assert "step skipped, 1 in a row, 1 in all" in judgement.words
    assert guard.judge(2.0, 1.0).usable


def test_only_unbroken_rows_of_skipped_steps_ask_for_an_earlier_checkpoint() -> None:
    guard = StepGuard()
    for _ in range(3):
        assert not any(guard.judge(NAN, 1.0).roll_back for _ in range(PATIENCE - 1))
        assert guard.judge(2.0, 1.0).usable
    asked = [guard.judge(2.0, NAN).roll_back for _ in range(PATIENCE)]
    assert asked == [False] * (PATIENCE - 1) + [True]
    assert guard.skipped == 3 * (PATIENCE - 1) + PATIENCE


def test_a_spike_is_told_and_used() -> None:
    guard, noise = StepGuard(), random.Random(0)
    told = [guard.judge(3 + noise.gauss(0, 0.05), 1.0).words for _ in range(1000)]
    assert not any(told)
    judgement = guard.judge(4.5, 1.0)
    assert judgement.usable
    assert "spike: loss 4.5000 where the last 128 had a median of 2.99" in judgement.words
    assert judgement.facts["spike_over_median"] == pytest.approx(1.5, abs=0.05)
    assert not guard.judge(3.0, 1.0).words


@pytest.mark.parametrize(
    "losses",
    [
        [9.0 - 0.05 * n for n in range(150)],  # falling
        [2.0] * 60 + [2.05],  # without any noise, a trifle is no spike
        [2.0] * 20 + [9.0],  # too few to know
        [8.0, 2.0] * 40,
    ],
)
def test_ordinary_losses_are_no_spikes(losses: list[float]) -> None:
    guard = StepGuard()
    assert not any(guard.judge(loss, 1.0).words for loss in losses)


def test_a_restored_guard_judges_as_the_one_that_was_saved() -> None:
    noise = random.Random(1)
    losses = [
        NAN if noise.random() < 0.2 else 3 + noise.gauss(0, 0.1) + 3 * (noise.random() < 0.05) for _ in range(300)
    ]
    one, two = StepGuard(), StepGuard()
    for loss in losses[:150]:
        one.judge(loss, 1.0)
    two.restore(json.loads(json.dumps(one.state())))
    assert [one.judge(loss, 1.0) for loss in losses[150:]] == [two.judge(loss, 1.0) for loss in losses[150:]]
