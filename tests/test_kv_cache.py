"""The cache against a forward pass without one: rows of different lengths, growing, forgetting, choosing rows."""

import pytest
import torch
from tiny import random_model

from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.kv_cache import KVCache

CONFIG = GPTConfig(sequence_len=64, vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(CONFIG)


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def cache_of(rows: int, capacity: int = 8) -> KVCache:
    return KVCache(CONFIG, rows, torch.device("cpu"), torch.float32, capacity)


@torch.no_grad()
def test_reading_in_chunks_of_any_size_gives_what_reading_at_once_gives(model: GPT) -> None:
    idx, cache = ids(3, 40), cache_of(3)
    expected = model.hidden(idx)
    chunks = [model.hidden(part, cache) for part in idx.split([7, 1, 12, 1, 1, 18], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, atol=1e-5, rtol=0)
    assert cache.lengths == [40, 40, 40]


@torch.no_grad()
def test_rows_of_different_lengths_go_on_together(model: GPT) -> None:
    lengths, idx, cache = [3, 11, 1, 7], ids(4, 30), cache_of(4)
    padded = idx[:, :11].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 0
    model.hidden(padded, cache)
    cache.truncate(lengths)
    for new in range(15):
        at = torch.tensor(lengths) + new
        made = model.hidden(idx[torch.arange(4), at].unsqueeze(1), cache)
        for row in range(4):
            expected = model.hidden(idx[row : row + 1, : at[row] + 1])[0, -1]
            torch.testing.assert_close(made[row, 0], expected, atol=1e-5, rtol=0)
    assert cache.lengths == [18, 26, 16, 22]


@torch.no_grad()
def test_it_grows_by_half_at_least_and_keeps_what_it_holds(model: GPT) -> None:
    cache = cache_of(2, capacity=20)
    model.hidden(ids(2, 20), cache)
    held = [layer.clone() for layer in cache.layers]
    model.hidden(ids(2, 1), cache)
    assert cache.capacity == 30
    assert all(torch.equal(now[..., :20, :], then) for now, then in zip(cache.layers, held, strict=True))
    model.hidden(ids(2, 25), cache)
    assert cache.capacity == 46
    cache.reserve(0)
    assert cache.capacity == 46


@torch.no_grad()
def test_chosen_rows_go_on_as_they_would_have_and_copies_part(model: GPT) -> None:
    idx, cache = ids(3, 20), cache_of(3)
    model.hidden(idx[:, :9], cache)
    cache.truncate([9, 4, 6])
    cache.select([2, 0, 2])
    assert (cache.rows, cache.lengths) == (3, [6, 9, 6])
    made = model.hidden(torch.tensor([[5], [6], [7]]), cache)
    for row, (source, length, last) in enumerate([(2, 6, 5), (0, 9, 6), (2, 6, 7)]):
        whole = torch.cat((idx[source, :length], torch.tensor([last]))).unsqueeze(0)
        torch.testing.assert_close(made[row, 0], model.hidden(whole)[0, -1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_is_forgotten_leaves_no_trace(model: GPT) -> None:
    idx, cache = ids(1, 12), cache_of(1)
    model.hidden(idx, cache)
    cache.truncate([5])
    again = model.hidden(idx[:, 5:8].flip(1), cache)
    expected = model.hidden(torch.cat((idx[:, :5], idx[:, 5:8].flip(1)), dim=1))[:, 5:]
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_positions_and_mask_follow_each_rows_length() -> None:
    cache = cache_of(2)
    cache.lengths = [1, 3]
    assert cache.positions(2).tolist() == [[1, 2], [3, 4]]
    mask = cache.mask(2)
    assert mask is not None
    assert mask.int().tolist() == [[[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]], [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]]
    cache.lengths = [3, 3]
    assert cache.mask(1) is None


def test_impossible_uses_are_caught() -> None:
    cache = cache_of(2)
    cache.lengths = [1, 3]
    with pytest.raises(AssertionError, match="one token at a time, got 2"):
        cache.write(0, torch.zeros(2, 2, 2, 8), torch.zeros(2, 2, 2, 8))
    with pytest.raises(AssertionError, match="1 lengths for 2 rows"):
        cache.truncate([1])
    with pytest.raises(AssertionError, match="cannot grow by forgetting"):
        cache.truncate([2, 3])


def test_its_size_is_what_the_config_counts() -> None:
    assert sum(layer.nbytes for layer in cache_of(3, 10).layers) == CONFIG.kv_cache_bytes(3, 10, bytes_per_value=4)
