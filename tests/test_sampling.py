"""From logits to ids: against softmax itself, and what must never be drawn."""

import math

import pytest
import torch

from nanochat.sampling import sample

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, float("-inf"), 0.0])


def frequencies(temperature: float, top_k: int | None, draws: int = 40_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = sample(LOGITS.expand(draws, -1), temperature, top_k, generator)
    return torch.bincount(ids, minlength=len(LOGITS)) / draws


def chi_square(found: torch.Tensor, expected: torch.Tensor, draws: int = 40_000) -> float:
    there = expected > 0
    assert found[~there].sum() == 0
    return float((draws * (found - expected)[there].square() / expected[there]).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_ids_are_drawn_as_often_as_softmax_says(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    assert chi_square(frequencies(temperature, None), expected) < 18.5  # 4 degrees of freedom: p = 0.001


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_draws_from_the_likeliest_alone_and_keeps_their_proportions(top_k: int) -> None:
    kept = LOGITS.topk(top_k)
    expected = torch.zeros_like(LOGITS).scatter(0, kept.indices, kept.values.softmax(0))
    assert chi_square(frequencies(1.0, top_k), expected) < 18.5


def test_temperature_zero_and_top_k_one_take_the_likeliest() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    best = logits.argmax(1)
    assert torch.equal(sample(logits, 0, None, None), best)
    assert torch.equal(sample(logits, 1.0, 1, torch.Generator().manual_seed(3)), best)


@pytest.mark.parametrize("top_k", [None, 0, 6, 100])
def test_without_a_limit_or_with_one_beyond_the_vocabulary_all_ids_are_drawn(top_k: int | None) -> None:
    """`--top_k=0` used to end in an error of torch.topk: people write 0 for "no limit"."""
    assert (frequencies(2.0, top_k) > 0).tolist() == [True, True, True, True, False, True]


def test_an_id_of_minus_infinity_is_never_drawn_even_within_top_k() -> None:
    logits = torch.full((1000, 8), float("-inf"))
    logits[:, 3], logits[:, 5] = 0.0, 0.0
    for top_k in (None, 4):
        assert set(sample(logits, 1.0, top_k, torch.Generator().manual_seed(4)).tolist()) == {3, 5}


def test_a_temperature_near_zero_is_greedy_and_does_not_overflow() -> None:
    logits = torch.tensor([[14.0, 15.0, 14.9]])
    for temperature in (1e-4, 2e-38):
        assert sample(logits, temperature, None, torch.Generator().manual_seed(5)).tolist() == [1]


def test_the_same_generator_state_draws_the_same() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(6))
    first, again, other = (sample(logits, 1.0, 10, torch.Generator().manual_seed(s)) for s in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert math.isfinite(float(first.sum()))
