"""Checks of lesson 20, against torch's softmax and attention, and the product's model, which reads everything."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons.compare import same
from lessons.counting import CountFlops
from lessons.learner import load
from lessons.oracle import model_of
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(20)
B, T, C, H, V, LAYERS = 2, 9, 16, 2, 13, 3


def product() -> GPT:
    """The product's model, small."""
    return model_of(GPTConfig(sequence_len=40, vocab_size=V, n_layer=LAYERS, n_head=H, n_kv_head=H, n_embd=C))


def weights() -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in product().named_parameters()}


def ids(tokens: int = T, rows: int = B) -> torch.Tensor:
    return torch.randint(V, (rows, tokens), generator=torch.Generator().manual_seed(2))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_probabilities_are_a_softmax_of_logits_over_temperature() -> None:
    for temperature in (0.5, 1.0, 2.0):
        same(
            mine.probabilities(normal(3, V), temperature),
            (normal(3, V) / temperature).softmax(-1),
            f"at {temperature}",
        )


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = normal(3, V)
    same(mine.probabilities(logits, 0.0), F.one_hot(logits.argmax(-1), V).float(), "probabilities at temperature 0")


def test_a_tiny_temperature_does_not_overflow() -> None:
    logits = normal(3, V) * 15
    expected = F.one_hot(logits.argmax(-1), V).float()
    same(mine.probabilities(logits, 1e-30), expected, "probabilities at temperature 1e-30")


def test_top_k_leaves_exactly_k_and_those_share_all() -> None:
    logits = normal(3, V)
    found = mine.probabilities(logits, 0.7, 4)
    least = logits.topk(4).values[:, -1:]
    same(found, (logits / 0.7).masked_fill(logits < least, -math.inf).softmax(-1), "the four likeliest")
    counts = (mine.probabilities(torch.zeros(2, V), 1.0, 4) > 0).sum(-1).tolist()
    assert counts == [4, 4], f"of {V} equal logits top_k=4 leaves {counts} ids: a comparison with the k-th keeps ties"
    same(mine.probabilities(logits, 0.7, V + 5), (logits / 0.7).softmax(-1), "top_k above the vocabulary: all ids")


def test_draw_draws_as_often_as_the_chances_say() -> None:
    chances = torch.tensor([0.0, 0.5, 0.3, 0.0, 0.2, 0.0])
    count = 20_000
    drawn = mine.draw(chances.expand(count, -1), torch.Generator().manual_seed(0))
    assert drawn.shape == (count,), f"draw of {count} rows gives the shape {tuple(drawn.shape)}, expected ({count},)"
    often = torch.bincount(drawn, minlength=6)
    assert often[chances == 0].sum() == 0, f"ids of chance 0 were drawn: the counts are {often.tolist()}"
    off = (often / count - chances).abs().max().item()
    assert off < 0.02, f"of chances {chances.tolist()} came shares {(often / count).tolist()}"


def test_draw_follows_its_generator_and_rows_differ() -> None:
    chances = torch.full((64, 8), 1 / 8)
    first, again = (mine.draw(chances, torch.Generator().manual_seed(5)).tolist() for _ in range(2))
    assert first == again, "the same seed drew other ids: give torch.rand the generator"
    assert len(set(first)) > 1, "64 rows of equal chances drew the same id: every row needs an arrow of its own"


def test_attend_is_torchs_where_all_tokens_are_new() -> None:
    q, k, v = (normal(B, H, T, 8, seed=seed) for seed in range(3))
    same(mine.attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True), "attend with T = S")


def test_attend_of_the_last_tokens_is_the_end_of_that_of_all() -> None:
    q, k, v = (normal(B, H, T, 8, seed=seed) for seed in range(3))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    for new in (1, 3):
        same(mine.attend(q[:, :, -new:], k, v), whole[:, :, -new:], f"attend of the last {new} of {T} tokens")


@pytest.mark.parametrize("pieces", [[9], [5, 4], [1] * 9, [4, 1, 1, 3]], ids=str)
def test_logits_by_the_cache_are_those_of_reading_everything(pieces: list[int]) -> None:
    expected = product()(ids())
    cache = mine.Cache()
    first = 0
    for new in pieces:
        found = mine.forward_cached(weights(), ids()[:, first : first + new], H, cache)
        last = first + new
        same(found, expected[:, first:last], f"logits of tokens {first} to {last - 1}, fed as {pieces}", 1e-4)
        first = last


def test_two_caches_do_not_mix() -> None:
    one, other = mine.Cache(), mine.Cache()
    mine.forward_cached(weights(), ids(), H, one)
    same(mine.forward_cached(weights(), ids(), H, other), product()(ids()), "logits by a second, fresh cache", 1e-4)


def test_greedy_generation_is_the_products() -> None:
    model, expected = product(), ids(4)
    for _ in range(10):
        expected = torch.cat((expected, model(expected)[:, -1:].argmax(-1)), dim=1)
    for cached in (False, True):
        found = mine.generate(weights(), H, ids(4), 10, cached=cached)
        assert found.tolist() == expected.tolist(), (
            f"cached={cached}: generate gave {found.tolist()}, the likeliest ids are {expected.tolist()}"
        )


def test_the_cache_changes_no_sampled_id() -> None:
    plain, cached = (
        mine.generate(weights(), H, ids(4), 20, 1.0, 5, seed=7, cached=cached).tolist() for cached in (False, True)
    )
    assert plain == cached, f"seed 7 gave {plain} without the cache and {cached} with it"
    other = mine.generate(weights(), H, ids(4), 20, 1.0, 5, seed=8).tolist()
    assert other != cached, "seeds 7 and 8 gave the same 40 ids"


def test_the_formula_counts_what_your_code_computes() -> None:
    for new, seen in ((8, 0), (1, 7), (3, 5)):
        cache = mine.Cache()
        if seen:
            mine.forward_cached(weights(), ids(seen, rows=1), H, cache)
        with CountFlops() as counter:
            mine.forward_cached(weights(), ids(new, rows=1), H, cache)
        found, counted = mine.flops(C, LAYERS, V, new, seen), counter.flops
        assert found == counted, f"{new} tokens behind {seen}: flops() says {found:,}, your code took {counted:,}"


def test_with_the_cache_every_token_is_read_once() -> None:
    with CountFlops() as counter:
        mine.generate(weights(), H, ids(6, rows=1), 12)
    at_most = mine.flops(C, LAYERS, V, 6, 0) + sum(mine.flops(C, LAYERS, V, 1, seen) for seen in range(6, 18))
    found = counter.flops
    assert found <= at_most, f"6 + 12 tokens took {found:,} FLOPs, reading each once takes at most {at_most:,}"


def test_cache_bytes_are_the_products() -> None:
    config = GPTConfig(n_layer=LAYERS, n_head=H, n_kv_head=H, n_embd=C)
    for rows, tokens in ((1, 1), (3, 100)):
        found, expected = mine.cache_bytes(C, LAYERS, rows, tokens, 2), config.kv_cache_bytes(rows, tokens, 2)
        assert found == expected, f"{rows} rows of {tokens} tokens: {found} bytes, expected {expected}"
