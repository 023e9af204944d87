"""From logits to ids: against softmax itself, cuts and penalties against their definitions, and what is never drawn."""

import math
import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.sampling import Sampler, SamplingParams, Seen, logprobs_of, needs_seen, top

LOGITS = torch.tensor([2.0, 0.5, -1.0, 1.0, float("-inf"), 0.0])
NOTHING: list[int] = []


def draw(
    logits: torch.Tensor,
    uniforms: Sequence[float],
    seen: Seen | None = None,
    softcap: float | None = None,
    **fields: Any,
) -> list[int]:
    """All rows with the same parameters."""
    sampler = Sampler([SamplingParams(**fields)] * len(logits), NOTHING, softcap)
    return sampler.draw(logits.clone(), uniforms, [seen] * len(logits))


def uniforms(count: int, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [1 - generator.random() for _ in range(count)]


def frequencies(draws: int = 40_000, logits: torch.Tensor = LOGITS, **fields: Any) -> torch.Tensor:
    ids = torch.tensor(draw(logits.expand(draws, -1), uniforms(draws), **fields))
    return torch.bincount(ids, minlength=len(logits)) / draws


def chi_square(found: torch.Tensor, expected: torch.Tensor, draws: int = 40_000) -> float:
    there = expected > 0
    assert found[~there].sum() == 0
    return float((draws * (found - expected)[there].square() / expected[there]).sum())


def only(*kept: int, of: torch.Tensor = LOGITS) -> torch.Tensor:
    """The distribution of the ids named, in their proportions."""
    hidden = torch.full_like(of, float("-inf"))
    hidden[list(kept)] = of[list(kept)]
    return hidden.softmax(0)


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_ids_are_drawn_as_often_as_softmax_says(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    assert chi_square(frequencies(temperature=temperature), expected) < 18.5  # 4 degrees of freedom: p = 0.001


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 3]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_p": 0.5}, [0]),  # probabilities 0.54, 0.20, 0.12, 0.07, 0.03
        ({"top_p": 0.6}, [0, 3]),
        ({"top_p": 0.9}, [0, 1, 3, 5]),
        ({"top_p": 0.9, "top_k": 3}, [0, 1, 3]),
        ({"top_p": 0.7, "top_k": 3}, [0, 3]),  # of what top_k leaves, the first two have 0.85
        ({"min_p": 0.3}, [0, 3]),
        ({"min_p": 0.2, "top_k": 5}, [0, 1, 3]),
        ({"min_p": 1.0}, [0]),
    ],
)
def test_cuts_leave_the_likeliest_in_their_proportions(fields: dict[str, Any], kept: list[int]) -> None:
    assert chi_square(frequencies(**fields), only(*kept)) < 18.5


def test_cuts_come_after_temperature() -> None:
    assert chi_square(frequencies(temperature=2.0, min_p=0.3), only(0, 1, 3, 5, of=LOGITS / 2)) < 18.5


def test_temperature_zero_and_top_k_one_take_the_likeliest() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(2))
    best = logits.argmax(1).tolist()
    assert draw(logits, uniforms(50), temperature=0) == best
    assert draw(logits, uniforms(50), top_k=1) == best


@pytest.mark.parametrize("top_k", [None, 0, 6, 100])
def test_without_a_limit_or_with_one_beyond_the_vocabulary_all_ids_are_drawn(top_k: int | None) -> None:
    """`--top_k=0` used to end in an error of torch.topk: people write 0 for "no limit"."""
    assert (frequencies(temperature=2.0, top_k=top_k) > 0).tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize("fields", [{}, {"top_k": 4}, {"top_p": 0.9999}, {"min_p": 0.001}, {"temperature": 0}])
def test_forbidden_ids_are_never_drawn_whatever_their_logit_and_the_number(fields: dict[str, Any]) -> None:
    logits = torch.tensor([[30.0, 0.0, 29.0, 0.0]] * 4)
    params = [SamplingParams(logit_bias={0: 100.0}, **fields)] * 2 + [SamplingParams(**fields)] * 2
    for softcap in (None, 15.0):
        drawn = Sampler(params, [0, 2], softcap).draw(logits.clone(), [2.0**-53, 1.0] * 2, [None] * 4)
        assert set(drawn) <= {1, 3}


def test_the_smallest_and_the_largest_number_draw_an_id_that_has_a_probability() -> None:
    logits = torch.tensor([float("-inf"), -1.0, float("-inf"), 3.0, -1.0, float("-inf")]).expand(2, -1)
    assert draw(logits, [2.0**-53, 1.0]) == [1, 4]
    assert draw(logits, [2.0**-53, 1.0], top_k=5) == [3, 4]


@pytest.mark.parametrize("temperature", [1e-4, 2e-38, 1e-300])
def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(temperature: float) -> None:
    assert draw(torch.tensor([[14.0, 15.0, 14.9]]), [0.999], temperature=temperature) == [1]


def test_squeezed_logits_are_what_is_drawn_from() -> None:
    raw = torch.tensor([40.0, 10.0, -5.0, 0.0])
    expected = (15 * torch.tanh(raw / 15)).softmax(0)
    for fields in ({}, {"top_k": 4}, {"logit_bias": {3: 0.0}}, {"top_p": 1 - 1e-6}):
        assert chi_square(frequencies(logits=raw, softcap=15.0, **fields), expected) < 16.3  # 3 degrees


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"top_k": 2}, {}, {"top_p": 0.5}, {"logit_bias": {1: 1.0}}])
def test_a_row_that_holds_no_numbers_is_told(fields: dict[str, Any]) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, math.nan, 3.0], [4.0, 1.0, 0.0]])
    drawn = draw(logits, [0.5] * 3, softcap=15.0, **fields)
    assert [token >= 0 for token in drawn] == [True, False, True]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("vocabulary", [32_768, 1000])
def test_the_largest_are_those_of_a_sort(rows: int, vocabulary: int) -> None:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(rows))
    logits[:, :200] += 3  # many of the largest in one block
    values, ids = top(logits, 50)
    expected = logits.sort(descending=True)
    assert torch.equal(values, expected.values[:, :50])
    assert torch.equal(ids, expected.indices[:, :50])


@pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"min_p": 0.02}, {"top_p": 0.95, "min_p": 0.01}, {"top_p": 0.999}])
@pytest.mark.parametrize("flat", [1.0, 5.0])
def test_cuts_of_a_large_vocabulary_draw_what_a_sort_of_all_draws(fields: dict[str, float], flat: float) -> None:
    """Whether the likeliest that are looked at are enough, or the distribution is so flat that all have to be."""
    logits = torch.randn(40, 4000, generator=torch.Generator().manual_seed(7)).mul_(5 / flat)
    numbers = uniforms(40)
    drawn = draw(logits, numbers, **fields)
    ordered = logits.double().sort(descending=True)
    weights = ordered.values.softmax(-1)
    if "top_p" in fields:
        weights[weights.cumsum(-1) - weights >= fields["top_p"]] = 0
    weights[weights < fields.get("min_p", 0) * weights[:, :1]] = 0
    sums = weights.cumsum(-1)
    expected = torch.searchsorted(sums, torch.tensor(numbers).unsqueeze(1) * sums[:, -1:])
    assert drawn == ordered.indices.gather(1, expected).squeeze(1).tolist()


KINDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.3]),
        "top_k": st.sampled_from([0, 1, 4]),
        "top_p": st.sampled_from([0.4, 0.9]),
        "min_p": st.sampled_from([0.1]),
        "logit_bias": st.just({3: 2.0, 5: -1.0}),
        "repetition_penalty": st.just(1.5),
        "presence_penalty": st.just(0.5),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(KINDS, min_size=2, max_size=8), st.integers(0, 1000))
def test_a_rows_id_is_the_one_that_it_gets_alone(kinds: list[dict[str, Any]], seed: int) -> None:
    params = [SamplingParams(**kind) for kind in kinds]
    logits = torch.randn(len(kinds), 12, generator=torch.Generator().manual_seed(seed)) * 3
    numbers = uniforms(len(kinds), seed)
    seen = [Seen(frozenset({1, 2}), {3: 2, 4: 1}) if needs_seen(one) else None for one in params]
    together = Sampler(params, [7], 15.0).draw(logits.clone(), numbers, seen)
    alone = [
        Sampler(params[n : n + 1], [7], 15.0).draw(logits[n : n + 1].clone(), numbers[n : n + 1], [seen[n]])
        for n in range(len(kinds))
    ]
    assert [[token] for token in together] == alone


# --- penalties and bias -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "best"),
    [
        ({}, 0),
        ({"repetition_penalty": 2.1}, 2),  # id 0 of the prompt: 4 / 2.1, id 1 of the answer: 3 / 2.1; id 2: 2
        ({"presence_penalty": 1.5}, 0),  # the prompt does not count
        ({"logit_bias": {0: -1.5}}, 1),
        ({"logit_bias": {0: -1.5}, "presence_penalty": 0.4}, 1),
        ({"logit_bias": {0: -1.5}, "presence_penalty": 0.6}, 0),
        ({"logit_bias": {0: -1.5}, "frequency_penalty": 0.3}, 0),  # twice in the answer
        ({"logit_bias": {3: 6.0}}, 3),
    ],
)
def test_penalties_and_bias_change_the_likeliest(fields: dict[str, Any], best: int) -> None:
    logits = torch.tensor([[4.0, 3.0, 2.0, -1.0]])
    seen = Seen(frozenset({0}), {1: 2})
    assert draw(logits, [0.5], seen, temperature=0, **fields) == [best]


def test_a_repetition_penalty_makes_negative_logits_smaller_too() -> None:
    assert draw(torch.tensor([[-1.0, -1.5]]), [0.5], Seen(frozenset({0})), temperature=0, repetition_penalty=2.0) == [1]


def test_seen_counts_the_answer() -> None:
    seen = Seen(frozenset({9}))
    for token in (4, 5, 4):
        seen.add(token)
    assert seen.answer == {4: 2, 5: 1}


# --- logprobs ---------------------------------------------------------------------------------------------------------


def test_logprobs_are_those_of_the_squeezed_logits_likeliest_first() -> None:
    raw = torch.randn(3, 10, generator=torch.Generator().manual_seed(3)) * 20
    expected = (15 * torch.tanh(raw / 15)).log_softmax(-1)
    found = logprobs_of(raw, [4, 0, 9], [0, 2, 20], 15.0)
    for row, (logprob, others) in enumerate(found):
        assert logprob == pytest.approx(float(expected[row, [4, 0, 9][row]]), abs=1e-5)
        best = expected[row].sort(descending=True)
        assert [token for token, _ in others] == best.indices[: [0, 2, 10][row]].tolist()
        assert [value for _, value in others] == pytest.approx(best.values[: len(others)].tolist(), abs=1e-5)
    assert [others for _, others in logprobs_of(raw, [1, 2, 3], [0, 0, 0], None)] == [(), (), ()]


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": -1}, "max_tokens must be 0 or more, got -1"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, got nan"),
        ({"temperature": math.inf}, "temperature must be 0 or more, got inf"),
        ({"top_k": -3}, "top_k must be 0 or more, got -3"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"min_p": 2}, "min_p must be from 0 to 1, got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
        ({"presence_penalty": math.nan}, "presence_penalty must be a number, got nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be a number, got inf"),
        ({"logit_bias": {3: math.inf}}, "logit_bias must hold numbers, got {3: inf}"),
        ({"stop": ("x", "")}, "stop must not hold an empty text"),
        ({"logprobs": -1}, "logprobs must be 0 or more, got -1"),
        ({"prompt_logprobs": -1}, "prompt_logprobs must be 0 or more, got -1"),
    ],
)
def test_a_field_that_no_answer_can_have_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingParams(**fields)


def test_parameters_travel_between_processes() -> None:
    params = SamplingParams(logit_bias={3: 1.0}, stop=("a",), stop_ids=(4,), seed=7)
    assert pickle.loads(pickle.dumps(params)) == params
